"""RFC 6962 hashing, C2SP checkpoints and CIDs with Python's own library; Ed25519 through `cryptography` where it is there."""

import base64
import binascii
import hashlib


class Bad(Exception):
    """What was checked is not as it must be."""


def need(holds, why):
    if not holds:
        raise Bad(why)


def sha256(data):
    return hashlib.sha256(data).digest()


def leaf_hash(data):
    return sha256(b"\x00" + data)


def node_hash(left, right):
    return sha256(b"\x01" + left + right)


def tree_root(leaves):
    """RFC 9162 section 2.1.1, over leaf hashes."""
    stack = []  # (height, hash) of complete subtrees, left to right
    for leaf in leaves:
        height = 0
        while stack and stack[-1][0] == height:
            leaf = node_hash(stack.pop()[1], leaf)
            height += 1
        stack.append((height, leaf))
    if not stack:
        return sha256(b"")
    root = stack.pop()[1]
    while stack:
        root = node_hash(stack.pop()[1], root)
    return root


def inclusion_root(leaf, index, size, proof):
    """RFC 9162 section 2.1.3.2: the root that the proof leads to, and on which side each sibling stands."""
    need(0 <= index < size, "index is not within the tree")
    at, last, node, sides = index, size - 1, leaf, []
    for sibling in proof:
        need(last > 0, "proof is too long")
        left = at & 1 == 1 or at == last
        sides.append(1 if left else 0)
        node = node_hash(sibling, node) if left else node_hash(node, sibling)
        if left:
            while at & 1 == 0 and at > 0:
                at, last = at >> 1, last >> 1
        at, last = at >> 1, last >> 1
    need(last == 0, "proof is too short")
    return node, sides


def read_base64(text):
    try:
        return base64.b64decode(text, validate=True)
    except binascii.Error as err:
        raise Bad(f"not base64: {text!r}") from err


def read_cid(text):
    """The 36 bytes of a CIDv1, base32 in lower case, sha2-256 of dag-cbor or raw."""
    need(len(text) == 59 and text[0] == "b" and text == text.lower(), f"not a cid: {text}")
    cid = base64.b32decode(text[1:].upper() + "======")
    need(cid[:1] == b"\x01" and cid[1] in (0x55, 0x71) and cid[2:4] == b"\x12\x20" and len(cid) == 36, f"not our cid: {text}")
    return cid


def open_checkpoint(note, vkey):
    """Origin, size, root, and whether the signature was checked (it needs `cryptography`)."""
    name, key_hash, key = vkey.split("+", 2)
    key = read_base64(key)
    need(key[:1] == b"\x01" and len(key) == 33, "verifier key is not ed25519")
    key_id = sha256(name.encode() + b"\n" + key)[:4]
    need(key_id.hex() == key_hash, "verifier key has another hash")

    text, separator, signatures = note.rpartition("\n\n")
    need(separator and signatures.endswith("\n"), "not a signed note")
    text += "\n"
    ours = []
    for line in signatures[:-1].split("\n"):
        need(line.startswith("\u2014 ") and line.count(" ") == 2, "malformed signature line")
        _, signer, signature = line.split(" ")
        signature = read_base64(signature)
        if signer == name and signature[:4] == key_id:
            ours.append(signature[4:])
    need(ours, "no signature of the verifier key")
    origin, size, root = text.split("\n")[:3]
    need(origin == name and size == str(int(size)), "not a checkpoint of this origin")
    try:
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        return origin, int(size), read_base64(root), False
    for signature in ours:
        try:
            Ed25519PublicKey.from_public_bytes(key[1:]).verify(signature, text.encode())
        except InvalidSignature as err:
            raise Bad("signature is wrong") from err
    return origin, int(size), read_base64(root), True
