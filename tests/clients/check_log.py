"""Checks a whole log against its signed head with programs that are not Cairn's.

    python check_log.py BASE VKEY          BASE: a directory or an http URL that holds `checkpoint` and `tile/...`
    python check_log.py BASE VKEY --cids FILE     the same, with the events' CIDs one a line instead of entry bundles

Reads every entry bundle, hashes the leaves, recomputes all tiles and the root with hashlib, and the root once more with
`pymerkle` where it is there. Prints what was found as JSON; exits with 1 where anything differs.
"""

import argparse
import json
import os
import sys
import urllib.request

from tlog import Bad, leaf_hash, need, open_checkpoint, read_cid, tree_root

WIDTH = 256


def reader(base):
    if base.startswith(("http://", "https://")):
        return lambda name: urllib.request.urlopen(f"{base.rstrip('/')}/{name}", timeout=30).read()

    def read(name):
        with open(os.path.join(base, name), "rb") as file:
            return file.read()

    return read


def tile_name(level, index, width):
    """The path of C2SP tlog-tiles: groups of three digits, all but the last behind an x."""
    groups = [f"{index % 1000:03}"]
    while index >= 1000:
        index //= 1000
        groups.insert(0, f"x{index % 1000:03}")
    return f"tile/{level}/{'/'.join(groups)}" + ("" if width == WIDTH else f".p/{width}")


def tiles_of(count):
    """Index and width of the tiles that hold so many hashes."""
    return [(index, min(WIDTH, count - index * WIDTH)) for index in range((count + WIDTH - 1) // WIDTH)]


def read_bundles(read, size):
    cids = []
    for index, width in tiles_of(size):
        bundle, at = read(tile_name("entries", index, width)), 0
        for _ in range(width):
            length = int.from_bytes(bundle[at : at + 2], "big")
            cids.append(bundle[at + 2 : at + 2 + length])
            at += 2 + length
        need(at == len(bundle), f"entry bundle {index} has another length")
    return cids


def check_tiles(read, leaves):
    """Compares every published tile, level by level; gives their number."""
    level, row, count = 0, leaves, 0
    while row:
        for index, width in tiles_of(len(row)):
            part = row[index * WIDTH : index * WIDTH + width]
            need(read(tile_name(level, index, width)) == b"".join(part), f"tile {index} of level {level} differs")
            count += 1
        level, row = level + 1, [tree_root(row[at : at + WIDTH]) for at in range(0, len(row) - WIDTH + 1, WIDTH)]
    return count


def check(read, vkey, cids_file):
    origin, size, root, signed = open_checkpoint(read("checkpoint").decode(), vkey)
    if cids_file is None:
        cids = read_bundles(read, size)
    else:
        with open(cids_file, encoding="ascii") as file:
            cids = [read_cid(line.strip()) for line in file]
    need(len(cids) == size, f"{len(cids)} entries for a head of {size}")
    need(all(len(cid) == 36 and cid[:4] == b"\x01\x71\x12\x20" for cid in cids), "an entry is not a cid of an event")
    leaves = [leaf_hash(cid) for cid in cids]
    need(tree_root(leaves) == root, "leaves lead to another root")
    checked, skipped = ["root"], []
    (checked if signed else skipped).append("signature")
    try:
        import pymerkle
    except ImportError:
        skipped.append("pymerkle")
    else:
        tree = pymerkle.InmemoryTree(algorithm="sha256")
        for cid in cids:
            tree.append_entry(cid)
        need(size == 0 or tree.get_root() == root, "pymerkle finds another root")
        checked.append("pymerkle")
    tiles = check_tiles(read, leaves) if cids_file is None else 0
    return {"origin": origin, "size": size, "root": root.hex(), "tiles": tiles, "checked": checked, "skipped": skipped}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("vkey")
    parser.add_argument("--cids")
    args = parser.parse_args()
    try:
        print(json.dumps({"ok": True, **check(reader(args.base), args.vkey, args.cids)}))
    except (Bad, OSError, ValueError) as err:
        print(json.dumps({"ok": False, "why": str(err)}))
        sys.exit(1)


main()
