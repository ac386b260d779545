"""An MCP server (2026-07-28, over HTTP) and its authorization server, which do what the files of a directory say.
Standard library only. Prints `ready URL`.

  seen     written here: a line for each step, like `authorize read write`, `token refresh_token`, `call write`;
           after each call `bearer` and the token that it carried
  life     the seconds a token lasts; 3600 without it
  revoked  while this file is there, every access token given before it came is refused
  hold     a request for a token is answered, once it is noted, when this file is gone
  issuer   another issuer to name in the answer to a login
  grant    the scopes that a login gives, whatever it asks for

Every secret it gives has `-hush-` in it. The tool `write` wants the scope `write`, everything else `read`. The page of
a login asks nobody. Confidential clients: `robot`, secret `robot-hush-secret`.
"""
import base64, hashlib, json, pathlib, sys, threading, time, urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT = pathlib.Path(sys.argv[1])
LOOK_EVERY = 0.01
lock = threading.Lock()
clients = {"robot": "robot-hush-secret"}
codes, access, renewals = {}, {}, {}
counter = 0


def fresh(kind):
    global counter
    counter += 1
    return f"{kind}-hush-{counter}"


def see(*words):
    with open(ROOT / "seen", "a") as seen:
        seen.write(" ".join(word for word in words if word) + "\n")


def said(name, default=""):
    try:
        return (ROOT / name).read_text().strip()
    except FileNotFoundError:
        return default


class Door(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def reply(self, status, body=None, **headers):
        data = b"" if body is None else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def body(self):
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def do_GET(self):
        path, _, query = self.path.partition("?")
        if path == "/.well-known/oauth-protected-resource/mcp":
            self.reply(200, {"resource": BASE + "/mcp", "authorization_servers": [BASE]})
        elif path == "/.well-known/oauth-authorization-server":
            self.reply(200, {
                "issuer": BASE, "authorization_endpoint": BASE + "/authorize", "token_endpoint": BASE + "/token",
                "registration_endpoint": BASE + "/register", "response_types_supported": ["code"],
                "code_challenge_methods_supported": ["S256"], "scopes_supported": ["read", "write"],
                "token_endpoint_auth_methods_supported": ["client_secret_basic", "none"],
                "authorization_response_iss_parameter_supported": True})
        elif path == "/authorize":
            self.authorize(dict(urllib.parse.parse_qsl(query)))
        elif path == "/mcp":
            self.refused() if self.token() is None else self.reply(405)
        else:
            self.reply(404)

    def authorize(self, asked):
        see("authorize", asked.get("scope", ""))
        wrong = asked.get("client_id") not in clients or asked.get("resource") != BASE + "/mcp"
        if wrong or asked.get("code_challenge_method") != "S256":
            return self.reply(400, {"error": "invalid_request"})
        with lock:
            code = fresh("code")
            codes[code] = asked
        answer = {"code": code, "state": asked["state"], "iss": said("issuer", BASE)}
        self.reply(302, location=asked["redirect_uri"] + "?" + urllib.parse.urlencode(answer))

    def do_POST(self):
        if self.path == "/register":
            asked = json.loads(self.body())
            see("register", asked["application_type"])
            with lock:
                client, secret = fresh("client").replace("-hush-", "-"), fresh("secret")
                clients[client] = secret
            self.reply(201, {**asked, "client_id": client, "client_secret": secret,
                             "token_endpoint_auth_method": "client_secret_basic"})
        elif self.path == "/token":
            self.give(dict(urllib.parse.parse_qsl(self.body().decode())))
        elif self.path == "/mcp":
            self.speak(json.loads(self.body()))
        else:
            self.reply(404)

    def client(self):
        scheme, _, value = self.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "basic":
            return None
        name, _, secret = base64.b64decode(value).decode().partition(":")
        name, secret = urllib.parse.unquote_plus(name), urllib.parse.unquote_plus(secret)
        return name if clients.get(name) == secret else None

    def give(self, asked):
        grant = asked.get("grant_type", "")
        client = self.client()
        if client is None:
            see("token", grant, "unknown")
            return self.reply(401, {"error": "invalid_client"})
        with lock:
            scope = self.granted(grant, asked, client)
            if scope is None:
                see("token", grant, "refused")
                return self.reply(400, {"error": "invalid_grant", "error_description": "it is -hush- spent"})
            token, renewal = fresh("access"), fresh("refresh")
            access[token] = (scope, time.time())
            see("token", grant)
            answer = {"access_token": token, "token_type": "Bearer", "expires_in": int(said("life", "3600")),
                      "scope": scope, "id_token": fresh("id")}
            if grant != "client_credentials":
                renewals[renewal] = (scope, client)
                answer["refresh_token"] = renewal
        while (ROOT / "hold").exists():
            time.sleep(LOOK_EVERY)
        self.reply(200, answer)

    def granted(self, grant, asked, client):
        if asked.get("resource") != BASE + "/mcp":
            return None
        if grant == "client_credentials":
            return asked.get("scope", "read")
        if grant == "refresh_token":
            # Used once: whoever comes again has been robbed, or has lost the answer.
            scope, owner = renewals.pop(asked["refresh_token"], (None, None))
            return scope if owner == client else None
        code = codes.pop(asked.get("code"), None)
        digest = hashlib.sha256(asked.get("code_verifier", "").encode()).digest()
        challenge = base64.urlsafe_b64encode(digest).decode().rstrip("=")
        if code is None or code["code_challenge"] != challenge or code["redirect_uri"] != asked["redirect_uri"]:
            return None
        return said("grant") or code.get("scope", "read")

    def token(self):
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        scope, given = access.get(token, (None, 0))
        revoked = ROOT / "revoked"
        if scope is None or (revoked.exists() and given < revoked.stat().st_mtime):
            return None
        return scope.split()

    def refused(self):
        self.reply(401, www_authenticate=f'Bearer resource_metadata="{METADATA}", scope="read"')

    def speak(self, message):
        method, params = message["method"], message.get("params", {})
        scopes = self.token()
        if scopes is None:
            see("refused", method)
            return self.refused()
        if method == "tools/call":
            name = params["name"]
            if name == "write" and "write" not in scopes:
                see("short", name)
                lack = f'Bearer error="insufficient_scope", scope="write", resource_metadata="{METADATA}"'
                return self.reply(403, www_authenticate=lack)
            see("call", name)
            see("bearer", self.headers["authorization"].partition(" ")[2])
            result = {"content": [{"type": "text", "text": f"{name} done"}]}
        elif method == "tools/list":
            result = {"tools": [{"name": name, "inputSchema": {"type": "object"}} for name in ("read", "write")]}
        elif method == "server/discover":
            result = {"supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
                      "serverInfo": {"name": "locked", "version": "1"}}
        elif "id" not in message:
            return self.reply(202)
        else:
            error = {"code": -32601, "message": "method not found"}
            return self.reply(200, {"jsonrpc": "2.0", "id": message["id"], "error": error})
        result = {"resultType": "complete", **result}
        self.reply(200, {"jsonrpc": "2.0", "id": message["id"], "result": result})


server = ThreadingHTTPServer(("127.0.0.1", 0), Door)
server.daemon_threads = True
BASE = f"http://127.0.0.1:{server.server_address[1]}"
METADATA = BASE + "/.well-known/oauth-protected-resource/mcp"
print("ready", BASE + "/mcp", flush=True)
server.serve_forever()
