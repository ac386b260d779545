"""Checks a receipt with programs that are not Cairn's.

    python check_receipt.py receipt.json VKEY

Prints what was checked as JSON; exits with 1 where the receipt proves nothing. Needs Python alone; `cryptography` adds
the signature, `dag-cbor` the event's own fields, `pymerkle` a second opinion on the proof. What could not be checked for
want of a package is listed under `skipped`.
"""

import json
import sys

from tlog import Bad, inclusion_root, leaf_hash, need, open_checkpoint, read_base64, read_cid, sha256


def check(receipt, vkey):
    checked, skipped = [], []
    need(receipt["v"] == 1, "unknown version")
    cid, event, genesis = read_cid(receipt["cid"]), read_base64(receipt["event"]), read_base64(receipt["genesis"])
    need(cid[1] == 0x71 and cid[4:] == sha256(event), "cid does not name the event's bytes")
    checked.append("cid")

    origin, size, root, signed = open_checkpoint(receipt["checkpoint"], vkey)
    (checked if signed else skipped).append("signature")

    proof = [read_base64(text) for text in receipt["proof"]]
    need(all(len(digest) == 32 for digest in proof), "a proof is of 32-byte hashes")
    leaf = leaf_hash(cid)
    found, sides = inclusion_root(leaf, receipt["index"], size, proof)
    need(found == root, "proof leads to another root")
    checked.append("inclusion")

    try:
        import pymerkle
    except ImportError:
        skipped.append("pymerkle")
    else:
        # The rule's last bit has no sibling to place.
        second = pymerkle.InclusionProof(
            algorithm="sha256", security=True, size=size, index=receipt["index"] + 1, rule=sides + [0], path=[leaf] + proof
        )
        try:
            pymerkle.verify_inclusion(leaf, root, second, index=receipt["index"] + 1, size=size)
        except pymerkle.InvalidProof as err:
            raise Bad(f"pymerkle: {err}") from err
        checked.append("pymerkle")

    try:
        import dag_cbor
    except ImportError:
        skipped.append("fields")
    else:
        try:
            fields = dag_cbor.decode(event)
            need(dag_cbor.encode(fields) == event, "event is not canonical")
            need(fields["seq"] == receipt["index"], "event has another seq")
            need(bytes(fields["log"]) == b"\x01\x71\x12\x20" + sha256(genesis), "event is of another log")
            need(dag_cbor.decode(genesis)["origin"] == origin, "genesis block has another origin")
        except dag_cbor.decoding.err.CBORDecodingError as err:
            raise Bad("event or genesis block is not dag-cbor") from err
        checked.append("fields")
    return {"origin": origin, "size": size, "seq": receipt["index"], "checked": checked, "skipped": skipped}


def main():
    if len(sys.argv) != 3:
        sys.exit("usage: check_receipt.py FILE VKEY")
    with open(sys.argv[1], encoding="utf-8") as file:
        receipt = json.load(file)
    try:
        print(json.dumps({"ok": True, **check(receipt, sys.argv[2])}))
    except (Bad, KeyError, TypeError, ValueError) as err:
        print(json.dumps({"ok": False, "why": str(err) or repr(err)}))
        sys.exit(1)


main()
