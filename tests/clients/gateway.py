"""A router that opens ports when asked (UPnP IGD 1): tells who asks where it is, its outside address, and takes mappings.

    gateway.py INSIDE OUTSIDE     answers at the address INSIDE, says that it is OUTSIDE to the world, and prints each
                                  mapping it is asked for as one line of JSON

Standard library only.
"""

import json
import re
import socket
import struct
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

INSIDE, OUTSIDE = sys.argv[1:3]
GROUP, PORT = "239.255.255.250", 1900
SERVICE = "urn:schemas-upnp-org:service:WANIPConnection:1"
MAPPING = [
    "NewRemoteHost",
    "NewExternalPort",
    "NewProtocol",
    "NewInternalPort",
    "NewInternalClient",
    "NewEnabled",
    "NewPortMappingDescription",
    "NewLeaseDuration",
]
DESCRIPTION = f"""<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><device>
<deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType>
<serviceList><service><serviceType>{SERVICE}</serviceType>
<SCPDURL>/actions.xml</SCPDURL><controlURL>/control</controlURL></service></serviceList>
</device></root>"""
ARGUMENTS = "".join(f"<argument><name>{name}</name><direction>in</direction></argument>" for name in MAPPING)
ACTIONS = f"""<?xml version="1.0"?>
<scpd xmlns="urn:schemas-upnp-org:service-1-0"><actionList>
<action><name>AddPortMapping</name><argumentList>{ARGUMENTS}</argumentList></action>
</actionList></scpd>"""


class Control(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer({"/device.xml": DESCRIPTION, "/actions.xml": ACTIONS}.get(self.path))

    def do_POST(self):
        action = self.headers["SOAPAction"].strip('"').split("#")[1]
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        said = ""
        if action == "GetExternalIPAddress":
            said = f"<NewExternalIPAddress>{OUTSIDE}</NewExternalIPAddress>"
        elif action == "AddPortMapping":
            print(json.dumps(dict(re.findall(r"<(New\w+)[^>]*>([^<]*)</", body))), flush=True)
        answer = f'<m:{action}Response xmlns:m="{SERVICE}">{said}</m:{action}Response>'
        self.answer(
            '<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/">'
            f"<s:Body>{answer}</s:Body></s:Envelope>"
        )

    def answer(self, text):
        body = (text or "").encode()
        self.send_response(200 if text else 404)
        self.send_header("Content-Type", "text/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


control = HTTPServer((INSIDE, 0), Control)
threading.Thread(target=control.serve_forever, daemon=True).start()
asked = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asked.bind(("", PORT))
membership = struct.pack("4s4s", socket.inet_aton(GROUP), socket.inet_aton(INSIDE))
asked.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, membership)
print(json.dumps({"listening": INSIDE}), flush=True)
while True:
    question, who = asked.recvfrom(2048)
    if question.startswith(b"M-SEARCH") and b"InternetGatewayDevice:1" in question:
        told = [
            "HTTP/1.1 200 OK",
            "ST: urn:schemas-upnp-org:device:InternetGatewayDevice:1",
            f"LOCATION: http://{INSIDE}:{control.server_port}/device.xml",
        ]
        asked.sendto(("\r\n".join(told) + "\r\n\r\n").encode(), who)
