"""Broken records: what people, exporters, disks and crawlers make of data. Each has what it must come to.

A case is (record, what is said of it) or (record, `Reads`): some odd records are read, and then rightly.
"""

import base64
import json
import os
import struct
import zlib
from dataclasses import dataclass
from io import BytesIO

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class Reads:
    """The record is sound: its answers, and the sizes (height, width) of what it shows."""

    answer: str
    sizes: tuple = ()


def q(text="<image>\nwhat color ?"):
    return {"from": "human", "value": text}


def a(text="red"):
    return {"from": "gpt", "value": text}


def rec(**keys):
    """A sound record but for `keys`; a key that is `...` is left out."""
    record = {"image": "good.png", "conversations": [q(), a()]} | keys
    return {key: value for key, value in record.items() if value is not ...}


def said(*turns, image="good.png"):
    return rec(conversations=list(turns), image=image)


def png(width=24, height=24, colour=(90, 90, 90), **settings):
    buffer = BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG", **settings)
    return buffer.getvalue()


def encoded(form, size=(24, 24), mode="RGB"):
    buffer = BytesIO()
    Image.new(mode, size).save(buffer, form)
    return buffer.getvalue()


def deep(levels, inner="x"):
    return "[" * levels + json.dumps(inner) + "]" * levels


BARE = base64.b64encode(png(30, 20)).decode()
BARE_JPEG = base64.b64encode(encoded("JPEG", (30, 20))).decode()
LONG = "x" * 100_000
NO_FILE = "does not exist; check the path"
NOT_A_PATH = "write a path or a list of paths"

# Fields of a record ---------------------------------------------------------------------------------------------------

FIELDS = {
    # the record itself
    "null": (None, "a record is an object"),
    "a number": (7, "a record is an object"),
    "true": (True, "a record is an object"),
    "a text": ("red", "a record is an object"),
    "an empty text": ("", "a record is an object"),
    "an empty list": ([], "a record is an object"),
    "a list of numbers": ([1, 2], "a record is an object"),
    "an empty object": ({}, "there is no text to learn"),
    "no conversation": (rec(conversations=...), "there is no text to learn"),
    "a misspelt key": (rec(conversation_s=[q(), a()]), "nothing reads the key 'conversation_s'"),
    "a thousand strange keys": (rec(**{f"k{i}": 1 for i in range(1000)}), "nothing reads the keys.*and 980 others"),
    "a key of a hundred thousand letters": (rec(**{LONG: 1}), "nothing reads the key"),
    "a key with half of a character": (rec(**{"\ud800": 1}), r"nothing reads the key '\\ud800'"),
    "a key with a control character": (rec(**{"a\0b": 1}), r"nothing reads the key 'a\\x00b'"),
    "an id that is a list": (rec(id=[1]), Reads("red", ((24, 24),))),
    "an id with half of a character": (rec(id="\udc00", image="none.png"), r"\(id \\udc00\).*none.png"),
    "an id of a hundred thousand letters": (rec(id=LONG, image="none.png"), r"\(id x{100}\).*none.png"),
    "an id with a line break": (rec(id="a\nb", image="none.png"), "none.png does not exist"),
    "an id that turns the writing round": (rec(id="\u202eabc", image="none.png"), r"\(id \\u202eabc\)"),
    # conversations
    "conversations null": (rec(conversations=None), "there is no text to learn"),
    "conversations empty": (rec(conversations=[]), "write a list with at least one turn|there is no text"),
    "conversations a number": (rec(conversations=3), "write a list with at least one turn"),
    "conversations NaN": (rec(conversations=float("nan")), "write a list with at least one turn"),
    "conversations infinite": (rec(conversations=float("inf")), "write a list with at least one turn"),
    "conversations false": (rec(conversations=False), "write a list with at least one turn"),
    "conversations a text that is no JSON": (rec(conversations="red"), "not JSON"),
    "conversations a text of JSON": (rec(conversations=json.dumps([q(), a("green")])), Reads("green", ((24, 24),))),
    "conversations deep JSON in a text": (rec(conversations=deep(100_000)), "nested too deeply"),
    "conversations columns of unequal length": (
        rec(conversations={"from": ["human"], "value": []}),
        "not of one length",
    ),
    "conversations and messages that differ": (
        rec(messages=[q("Q"), a("blue")]),
        "both hold something, and not the same",
    ),
    "a turn null": (said(q(), None), "turn 1: a turn is"),
    "a turn a text": (said(q(), "red"), "turn 1: a turn is"),
    "a turn a list": (said(q(), ["red"]), "turn 1: a turn is"),
    "a turn nested in itself": (said([q(), a()]), "turn 0: a turn is"),
    "a turn empty": (said(q(), {}), "turn 1: spoken by None"),
    "a turn with a strange key": (said(q(), {**a(), "txet": "x"}), "nothing reads the key 'txet'"),
    # who speaks
    "a role unknown": (said(q(), {"from": "bot", "value": "red"}), "spoken by 'bot'"),
    "a role null": (said(q(), {"from": None, "value": "red"}), "spoken by None"),
    "a role a number": (said(q(), {"from": 1, "value": "red"}), "spoken by 1"),
    "a role a list": (said(q(), {"from": ["gpt"], "value": "red"}), "spoken by"),
    "a role an object": (said(q(), {"from": {"a": 1}, "value": "red"}), "spoken by"),
    "a role in capitals": (said(q(), {"from": "GPT", "value": "red"}), "spoken by 'GPT'"),
    "a role with a space": (said(q(), {"from": "gpt ", "value": "red"}), "spoken by 'gpt '"),
    "a tool": (said(q(), {"from": "function_call", "value": "{}"}, a()), "calls of tools"),
    "two roles that differ": (said(q(), {**a(), "role": "user"}), "'role' and 'from' differ"),
    # what is said
    "an answer null": (said(q(), a(None)), "its text is None"),
    "an answer a number": (said(q(), a(7)), "its text is 7"),
    "an answer negative": (said(q(), a(-1)), "its text is -1"),
    "an answer NaN": (said(q(), a(float("nan"))), "its text is nan"),
    "an answer true": (said(q(), a(True)), "its text is True"),
    "an answer an object": (said(q(), a({"text": "red"})), "its text is"),
    "an answer empty": (said(q(), a("")), "the answer is empty"),
    "an answer of spaces": (said(q(), a(" \n\t ")), "the answer is empty"),
    "an answer absent": (said(q(), {"from": "gpt"}), "its text is None"),
    "an answer of an empty list": (said(q(), a([])), "an answer is empty"),
    "no answer": (said(q()), "none of its .* tokens is an answer"),
    "no turn but the system's": (said({"from": "system", "value": "Be brief."}, image=...), "none of its|is an answer"),
    "two answers in a row": (said(q(), a("red"), a("green")), Reads("red|green", ((24, 24),))),
    "two questions in a row": (said(q(), q("which ?"), a("red")), Reads("red", ((24, 24),))),
    "an answer too long": (said(q(), a("red " * 5000)), "the limit is 1024"),
    "an answer of fifty thousand letters": (said(q(), a("x" * 50_000)), "the limit is 1024"),
    "a question too long": (said(q("<image>" + "red " * 5000), a()), "the limit is 1024"),
    "half of a character in the answer": (
        said(q(), a("red \ud83d")),
        r"message 1 \(assistant\) holds half of a character, '\\ud83d' at 4",
    ),
    "half of a character in the question": (said(q("<image>\n\udc00 ?"), a()), "holds half of a character"),
    "half of a character in the system text": (rec(system="\ud800"), "holds half of a character"),
    "two halves the wrong way round": (said(q(), a("\ude00\ud83d")), "holds half of a character"),
    "a whole character as two halves": (
        '{"image": "good.png", "conversations": [{"from": "human", "value": "<image>what color ?"}, '
        '{"from": "gpt", "value": "red \\ud83d\\ude00"}]}',
        Reads("red", ((24, 24),)),
    ),
    "a null character in the answer": (said(q(), a("red\0")), Reads("red", ((24, 24),))),
    "control characters": (said(q(), a("red\x07\x1b[31m\x7f")), Reads("red", ((24, 24),))),
    "writing turned round": (said(q(), a("\u202ered\u2066")), Reads("red", ((24, 24),))),
    "white space of no width": (said(q(), a("\u200bred")), Reads("red", ((24, 24),))),
    "loss a half": (said(q(), {**a(), "loss": 0.5}), "write true or false"),
    "loss NaN": (said(q(), {**a(), "loss": float("nan")}), "write true or false"),
    "loss a text": (said(q(), {**a(), "loss": "yes"}), "write true or false"),
    "loss a list": (said(q(), {**a(), "loss": [1]}), "write true or false"),
    "loss huge": (said(q(), {**a(), "loss": 10**400}), "write true or false"),
    "loss of a question": (said({**q(), "loss": True}, a()), "only answers can be"),
    "loss of nothing": (said(q(), {**a(), "loss": 0}), "none of its"),
    "system a number": (rec(system=5), "'system' is 5"),
    "system twice": (
        rec(system="A", conversations=[{"from": "system", "value": "B"}, q(), a()]),
        "two different system texts",
    ),
    # marks
    "two marks, one image": (said(q("<image><image>?"), a()), "2 <image> markers but 1 image"),
    "no image for a mark": (rec(image=...), "1 <image> marker but 0 images"),
    "a mark too many in the answer": (said(q(), a("<image> red")), "2 <image> markers but 1 image"),
    "a mark of a video for an image": (said(q("<video>?"), a()), "marker"),
    "an image too many": (rec(image=["good.png", "good.png"]), "1 <image> marker but 2 images"),
    "a hundred thousand marks": (said(q("<image>" * 100_000), a()), "100000 <image> markers"),
    "no mark at all": (said(q("what ?"), a()), Reads("red", ((24, 24),))),
    # the name of an image
    "an image null": (rec(image=None), "1 <image> marker but 0 images"),
    "an image of no name": (rec(image=""), "1 <image> marker but 0 images"),
    "an image a number": (rec(image=5), NOT_A_PATH),
    "an image zero": (rec(image=0), NOT_A_PATH),
    "an image true": (rec(image=True), NOT_A_PATH),
    "an image NaN": (rec(image=float("nan")), NOT_A_PATH),
    "an image an object of strange keys": (rec(image={"url": "x"}), "nothing reads the key 'url'"),
    "an image an object that is empty": (rec(image={"bytes": None, "path": None}), "1 <image> marker but 0 images"),
    "an image an object whose path is a number": (rec(image={"path": 3}), NOT_A_PATH),
    "an image in a list in a list": (rec(image=[["good.png"]]), NOT_A_PATH),
    "an image null in a list": (rec(image=[None, "good.png"]), NOT_A_PATH),
    "an image that is not there": (rec(image="none.png"), NO_FILE),
    "a name of a hundred thousand letters": (rec(image=LONG), NO_FILE),
    "a name longer than a folder takes": (rec(image="x" * 300 + ".png"), NO_FILE),
    "a path longer than the system takes": (rec(image="a/" * 5000 + "x.png"), NO_FILE),
    "a null character in a name": (rec(image="go\0od.png"), r"go\\x00od.png does not exist"),
    "half of a character in a name": (rec(image="\ud800.png"), NO_FILE),
    "a name that turns the writing round": (rec(image="gnp.\u202e"), r"\\u202e does not exist"),
    "a space after a name": (rec(image="good.png "), NO_FILE),
    "a name in capitals": (rec(image="GOOD.PNG"), NO_FILE),
    "a folder": (rec(image="folder"), "not a regular file"),
    "the folder itself": (rec(image="."), "not a regular file"),
    "a name with a slash at its end": (rec(image="good.png/"), Reads("red", ((24, 24),))),
    "a file as a folder": (rec(image="good.png/x.png"), NO_FILE),
    "an address": (rec(image="https://example.org/a.png"), "mmblocks opens no URLs"),
    "an address of a file": (rec(image="file:///etc/hostname"), "mmblocks opens no URLs"),
    "a device": (rec(image="/dev/zero"), "not a regular file"),
    "a device without end": (rec(image="/dev/urandom"), "not a regular file"),
    "a file of the system without length": (rec(image="/proc/self/environ"), "empty"),
    # images in the record
    "an image as base64": (rec(image=BARE), Reads("red", ((20, 30),))),
    "an image as base64 over several lines": (
        rec(image="\n".join(BARE[i : i + 60] for i in range(0, len(BARE), 60))),
        Reads("red", ((20, 30),)),
    ),
    "a JPEG as base64, which begins as a path does": (rec(image=BARE_JPEG), Reads("red", ((20, 30),))),
    "images as base64 in a list": (
        rec(image=[BARE, "good.png"], conversations=[q("<image><image>?"), a()]),
        Reads("red", ((20, 30), (24, 24))),
    ),
    "base64 of no image": (rec(image=base64.b64encode(b"no image" * 20).decode()), NO_FILE),
    "base64 that is cut": (rec(image=BARE[:-7]), f"{NO_FILE}|cut off or damaged|header is broken"),
    "base64 of half an image": (rec(image=base64.b64encode(png(200, 200)[:200]).decode()), "cut off or damaged"),
    "base64 of a head alone": (
        rec(image=base64.b64encode(b"\xff\xd8\xff" + b"x" * 100).decode()),
        "not an image|header is broken",
    ),
    "a data URI": (rec(image=f"data:image/png;base64,{BARE}"), Reads("red", ((20, 30),))),
    "a data URI without a comma": (rec(image="data:image/png;base64"), "no comma"),
    "a data URI of broken base64": (rec(image="data:image/png;base64,@@@"), "its base64 is broken"),
    "a data URI of nothing": (rec(image="data:image/png;base64,"), "zero bytes"),
    "a data URI of half a character": (rec(image="data:image/png,\ud800"), "it is no text"),
    # videos
    "a video that is not there": (rec(image=..., video="none.mp4", conversations=[q("<video>?"), a()]), NO_FILE),
    "a video a number": (rec(image=..., video=3, conversations=[q("<video>?"), a()]), NOT_A_PATH),
    "a video of an empty folder": (
        rec(image=..., video="folder", conversations=[q("<video>?"), a()]),
        "this folder holds no image",
    ),
    "a video of an image": (rec(image=..., video="good.png", conversations=[q("<video>?"), a()]), "not a video"),
    "a video of text": (rec(image=..., video="text.mp4", conversations=[q("<video>?"), a()]), "not a video"),
    "a video of nothing": (rec(image=..., video="empty.mp4", conversations=[q("<video>?"), a()]), "zero bytes"),
    "a video of a device": (
        rec(image=..., video="/dev/zero", conversations=[q("<video>?"), a()]),
        "not a regular file",
    ),
    "a video of frames of two sizes": (
        rec(image=..., video=["good.png", "large.png"], conversations=[q("<video>?"), a()]),
        "frames of a video have one size",
    ),
    "a video of frames of which one is gone": (
        rec(image=..., video=["good.png", "none.png"], conversations=[q("<video>?"), a()]),
        NO_FILE,
    ),
    # parts
    "a part null": (said(q("?"), {"from": "human", "value": [None]}, a(), image=...), "a part is"),
    "a part of an unknown type": (
        said({"from": "human", "value": [{"type": "audio", "audio": "x"}]}, a(), image=...),
        "a part is|nothing reads",
    ),
    "a part whose type is a list": (
        said({"from": "human", "value": [{"type": ["text"]}]}, a(), image=...),
        "a part is",
    ),
    "a part without its text": (
        said({"from": "human", "value": [{"type": "text"}]}, a(), image=...),
        "has no 'text' entry",
    ),
    "a part whose text is a number": (
        said({"from": "human", "value": [{"type": "text", "text": 3}]}, a(), image=...),
        "its text is 3",
    ),
    "a part of half a character": (
        said({"from": "human", "value": [{"type": "text", "text": "\ud800"}]}, a(), image=...),
        "holds half of a character",
    ),
    "a part that takes an image that is not there": (
        said({"from": "human", "value": [{"type": "image"}]}, a(), image=...),
        "no image is left|has no 'image' entry",
    ),
    "a part whose pace is NaN": (
        said(
            {"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": float("nan")}]}, a(), image=...
        ),
        "fps is nan",
    ),
    "a part whose pace is infinite": (
        said(
            {"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": float("inf")}]}, a(), image=...
        ),
        "fps is inf",
    ),
    "a part whose pace is negative": (
        said({"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": -1}]}, a(), image=...),
        "fps is -1",
    ),
    "a part whose pace is zero": (
        said({"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": 0}]}, a(), image=...),
        "fps is 0",
    ),
    "a part whose pace is true": (
        said({"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": True}]}, a(), image=...),
        "fps is True",
    ),
    "a part whose pace is too large a number": (
        said({"from": "human", "value": [{"type": "video", "video": ["good.png"], "fps": 10**400}]}, a(), image=...),
        "fps is|OverflowError",
    ),
    "a part whose note is half a character": (
        said({"from": "human", "value": [{"type": "image", "image": "good.png", "note": "\ud800"}]}, a(), image=...),
        r"has the note '\\ud800'",
    ),
    "a part that is nested deeply": (
        said({"from": "human", "value": [{"type": "text", "text": [[["x"]]]}]}, a(), image=...),
        "its text is",
    ),
}

# Lines of a .jsonl file -----------------------------------------------------------------------------------------------

LINES = {
    "cut in the middle": (b'{"image": "good.png", "conversations": [{"from": "hum', "not JSON"),
    "no JSON": (b"red", "not JSON"),
    "a comma too many": (b'{"image": "good.png",}', "not JSON"),
    "two records on a line": (b'{"a": 1} {"b": 2}', "not JSON.*Extra data"),
    "not UTF-8": (b'{"conversations": [{"from": "human", "value": "\xff\xfe"}]}', "not JSON"),
    "a control character within a text": (b'{"conversations": "\x01"}', "not JSON"),
    "null characters, as a disk leaves them": (b"\0" * 64, "not JSON"),
    "a key twice": (b'{"image": "a", "image": "good.png", "conversations": []}', "the key 'image' stands twice"),
    "a key twice among twenty thousand": (
        json.dumps({f"k{i}": 0 for i in range(20_000)}).encode()[:-1] + b', "k19999": 1}',
        "the key 'k19999' stands twice",
    ),
    "lists in lists in lists": (deep(100_000).encode(), "nested too deeply"),
    "objects in objects": (
        b'{"conversations": ' + b'{"a":' * 50_000 + b"1" + b"}" * 50_000 + b"}",
        "nested too deeply",
    ),
    "nested as deep as Python takes": (b'{"conversations": ' + deep(900).encode() + b"}", "turn 0|nested too deeply"),
    "a number of ten thousand digits": (b'{"conversations": ' + b"9" * 10_000 + b"}", "not JSON"),
    "a number beyond all": (b'{"conversations": 1e999}', "write a list"),
}


# Files of images and videos ------------------------------------------------------------------------------------------


def chunk(kind, content, crc=None):
    return (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content) if crc is None else crc)
    )


def png_of(width, height, pixels=b"", **crc):
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header, crc.get("header"))
        + chunk(b"IDAT", zlib.compress(pixels), crc.get("data"))
        + chunk(b"IEND", b"")
    )


def noise(form):
    pixels = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, form)
    return buffer.getvalue()


def written(content):
    return lambda path: path.write_bytes(content)


def loop_of_links(path):
    path.symlink_to(path)


def link_to_nothing(path):
    path.symlink_to("gone")


def link_to_a_device(path):
    path.symlink_to("/dev/zero")


def pipe(path):
    os.mkfifo(path)


def socket(path):
    os.mknod(path, 0o140644)


DAMAGED = "cut off or damaged"
HEADER = "header is broken"
FILES = {
    "nothing": (written(b""), "zero bytes"),
    "a single byte": (written(b"x"), "not an image"),
    "text": (written(b"no image\n" * 50), "not an image"),
    "an error page": (written(b"<!DOCTYPE html><html><body>404</body></html>"), "not an image"),
    "a pointer of git-lfs": (
        written(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"),
        "not an image",
    ),
    "an SVG": (written(b"<svg xmlns='http://www.w3.org/2000/svg'/>"), "not an image"),
    "a PDF": (written(b"%PDF-1.7\n" + b"x" * 99), "not an image"),
    "an EPS, which another program would draw": (
        written(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"),
        "not an image",
    ),
    "a ZIP": (written(b"PK\3\4" + b"\0" * 60), "not an image"),
    "zeros, as a disk leaves them": (written(b"\0" * 4096), "not an image"),
    "a folder": (lambda path: path.mkdir(), "not a regular file"),
    "a pipe": (pipe, "not a regular file"),
    "a socket": (socket, "not a regular file"),
    "links in a circle": (loop_of_links, "does not exist"),
    "a link to nothing": (link_to_nothing, "does not exist"),
    "a link to a device": (link_to_a_device, "not a regular file"),
    "a JPEG under the name of a PNG": (written(encoded("JPEG", (30, 20))), Reads("red", ((20, 30),))),
    "a PNG that is cut": (written(noise("PNG")[:-2000]), DAMAGED),
    "a PNG of its header alone": (written(noise("PNG")[:33]), "not an image"),
    "a PNG of its signature alone": (written(b"\x89PNG\r\n\x1a\n"), f"not an image|{HEADER}"),
    "a PNG whose header's check is wrong": (written(png_of(8, 8, b"\0" * 200, header=1)), f"not an image|{HEADER}"),
    "a PNG whose pixels' check is wrong": (
        written(png_of(8, 8, (b"\0" + b"\x07" * 24) * 8, data=1)),
        f"{DAMAGED}|{HEADER}",
    ),
    "a PNG of too few pixels": (written(png_of(80, 80, b"\0" * 30)), DAMAGED),
    "a PNG of no pixel": (written(png_of(0, 8)), f"{HEADER}|not an image|at least one|{DAMAGED}"),
    "a PNG of a hundred thousand by a hundred thousand": (written(png_of(100_000, 100_000)), "too large"),
    "a PNG of two billion by one": (written(png_of(2**31 - 1, 1)), "too large"),
    "a PNG whose texts are a bomb": (
        written(png(8, 8)[:33] + chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 80_000_000)) + png(8, 8)[33:]),
        f"{HEADER}|{DAMAGED}",
    ),
    "a JPEG that is cut": (written(noise("JPEG")[:-800]), DAMAGED),
    "a JPEG of three bytes": (written(b"\xff\xd8\xff"), f"not an image|{HEADER}"),
    "a JPEG of 65,500 by 65,500": (
        written(encoded("JPEG", (16, 16)).replace(struct.pack(">HH", 16, 16), struct.pack(">HH", 65500, 65500))),
        "too large|cut off or damaged",
    ),
    "a GIF of no frame": (
        written(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";"),
        f"{DAMAGED}|{HEADER}|not an image",
    ),
    "a GIF that is cut": (written(noise("GIF")[:900]), DAMAGED),
    "a WEBP that is cut": (written(noise("WEBP")[:300]), f"{DAMAGED}|{HEADER}|not an image"),
    "a BMP of negative width": (
        written(
            b"BM"
            + struct.pack("<IHHI", 100, 0, 0, 54)
            + struct.pack("<IiiHHIIiiII", 40, -8, 8, 1, 24, 0, 0, 0, 0, 0, 0)
        ),
        "too large",
    ),
    "a BMP that is cut": (written(noise("BMP")[:-5000]), DAMAGED),
    "a TIFF that is cut": (written(noise("TIFF")[:-5000]), f"{DAMAGED}|{HEADER}|not an image"),
    "a TIFF that points at itself": (written(b"II*\0\x08\0\0\0\0\0\x08\0\0\0"), f"{DAMAGED}|{HEADER}|not an image"),
    "a TIFF of a hundred thousand entries": (
        written(b"II*\0\x08\0\0\0\xff\xff" + b"\0" * 600),
        f"{DAMAGED}|{HEADER}|not an image",
    ),
    "an AVIF of its head alone": (
        written(b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
        f"{DAMAGED}|{HEADER}|not an image",
    ),
}
CLIPS = {
    "nothing": (written(b""), "zero bytes"),
    "text": (written(b"no video\n" * 50), "not a video"),
    "an image": (written(noise("PNG")), "not a video"),
    "zeros": (written(b"\0" * 4096), "not a video"),
    "a pipe": (pipe, "not a regular file"),
    "links in a circle": (loop_of_links, "does not exist"),
    "an MP4 of its head alone": (written(b"\0\0\0\x18ftypisom\0\0\0\0isomiso2"), "not a video|no video stream"),
    "a playlist of other files": (written(b"#EXTM3U\n#EXTINF:1,\n/etc/passwd\n"), "not a video"),
    "a list of files to join": (written(b"ffconcat version 1.0\nfile /etc/passwd\n"), "not a video"),
    "a sound": (
        written(
            b"RIFF"
            + struct.pack("<I", 36)
            + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, 8000, 8000, 1, 8)
            + b"data\0\0\0\0"
        ),
        "no video stream|not a video",
    ),
    "a GIF of no frame": (written(b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0) + b";"), "frame|not a video|empty"),
    "a MKV of its head alone": (written(b"\x1a\x45\xdf\xa3\x9f\x42\x86\x81\1"), "not a video"),
}


# Other sources --------------------------------------------------------------------------------------------------------

TAR = {
    "no record and no text": ({"png": png()}, "there is no text to learn"),
    "a record that is cut": ({"json": b'{"conversations": [', "png": png()}, "not JSON"),
    "a record of nothing": ({"json": b"", "png": png()}, "not JSON"),
    "a record that is not UTF-8": ({"json": b'{"a": "\xff"}', "png": png()}, "not JSON"),
    "a record that is a number": ({"json": b"5", "png": png()}, "it holds 5"),
    "a record that is nested deeply": ({"json": deep(100_000).encode(), "png": png()}, "nested too deeply"),
    "a key twice": ({"json": b'{"caption": "a", "caption": "b"}', "png": png()}, "stands twice"),
    "no image for a mark": ({"json": json.dumps(rec(image=...)).encode()}, "1 <image> marker but 0 images"),
    "an image that is named and not packed": ({"json": json.dumps(rec()).encode()}, "names 1, but the sample holds 0"),
    "an image of nothing": ({"json": json.dumps(rec()).encode(), "png": b""}, "not an image"),
    "an image that is cut": ({"json": json.dumps(rec()).encode(), "png": noise("PNG")[:-3000]}, DAMAGED),
    "a member that nothing reads": (
        {"json": json.dumps(rec()).encode(), "png": png(), "npy": b"x"},
        "nothing reads the member",
    ),
    "an answer that is not UTF-8": ({"txt": b"\xff\xfe", "png": png()}, "not UTF-8"),
    "an answer of nothing": ({"txt": b" ", "png": png()}, "the answer is empty"),
    "half of a character": ({"json": b'{"caption": "red \\ud800"}', "png": png()}, "holds half of a character"),
    "a video of text": (
        {"json": json.dumps(rec(image=..., conversations=[q("<video>?"), a()])).encode(), "mp4": b"no clip" * 9},
        "not a video",
    ),
}
"""Members of a sample by suffix."""

PARQUET = {
    "a conversation of null": ((None, png()), "there is no text to learn"),
    "a conversation of nothing": (("", png()), "not JSON"),
    "a conversation that is no JSON": (("red", png()), "not JSON"),
    "a conversation that is cut": ((json.dumps([q(), a()])[:-5], png()), "not JSON"),
    "a conversation of a number": (("5", png()), "write a list with at least one turn"),
    "a conversation that is nested deeply": ((deep(100_000), png()), "nested too deeply"),
    "half of a character": ((json.dumps([q(), a("\ud800")]), png()), "holds half of a character"),
    "an answer of null": ((json.dumps([q(), a(None)]), png()), "its text is None"),
    "a role unknown": ((json.dumps([q(), {"from": "x", "value": "y"}]), png()), "spoken by 'x'"),
    "an image of null": ((json.dumps([q(), a()]), None), "1 <image> marker but 0 images"),
    "an image of nothing": ((json.dumps([q(), a()]), b""), "1 <image> marker but 0 images|zero bytes|write a path"),
    "an image of text": ((json.dumps([q(), a()]), b"no image" * 9), "not an image"),
    "an image that is cut": ((json.dumps([q(), a()]), noise("PNG")[:-3000]), DAMAGED),
    "an image whose check is wrong": (
        (json.dumps([q(), a()]), png_of(8, 8, (b"\0" + b"\x07" * 24) * 8, data=1)),
        DAMAGED,
    ),
}
"""Conversation and image of a row."""

PAIRS = {
    "null": (None, "a record is an object"),
    "a list": ([1], "a record is an object"),
    "no answers": ({"prompt": "Q"}, "'chosen' is None"),
    "no rejected answer": ({"prompt": "Q", "chosen": "red"}, "'rejected' is None"),
    "an empty answer": ({"prompt": "Q", "chosen": "red", "rejected": " "}, "the answer is empty"),
    "an answer that is a number": ({"prompt": "Q", "chosen": 3, "rejected": "red"}, "its text is 3"),
    "an answer of two turns": ({"prompt": "Q", "chosen": [a(), a()], "rejected": "red"}, "write one answer"),
    "an answer of the user": ({"prompt": "Q", "chosen": [q("x")], "rejected": "red"}, "write one answer"),
    "a prompt that ends in an answer": (
        {"prompt": [q("Q"), a()], "chosen": "red", "rejected": "blue"},
        "end it with a question",
    ),
    "an empty prompt": ({"prompt": [], "chosen": "red", "rejected": "blue"}, "prompt|none of its|a question"),
    "half of a character in the rejected answer": (
        {"prompt": "Q", "chosen": "red", "rejected": "\udc00"},
        "holds half of a character",
    ),
    "an image that is not there": ({"prompt": "Q", "image": "none.png", "chosen": "red", "rejected": "blue"}, NO_FILE),
    "a strange key": ({"prompt": "Q", "chosen": "red", "rejected": "blue", "margin_of": 1}, "nothing reads the key"),
}

PATTERNS = {
    "a billion names": ("{0..999999999}.json", "stand for 1,000,000,000 names"),
    "a billion names of three braces": ("{0..999}{0..999}{0..999}.json", "stand for 1,000,000,000 names"),
    "numbers beyond counting": ("{0.." + "9" * 18 + "}.json", "stand for 1,000,000,000,000,000,000 names"),
    "numbers of a thousand digits": ("{0.." + "9" * 1000 + "}.json", "no such file"),
    "numbers that go down": ("{9..0}.json", "no file is named"),
    "a name too long": ("x" * 100_000 + ".json", "no such file"),
    "a null character": ("a\0b.json", "no such file"),
    "half of a character": ("\ud800.json", "no such file"),
    "a pipe": ("pipe.json", "not a regular file"),
    "a device": ("/dev/zero", "not a regular file"),
    "links in a circle": ("circle.json", "no such file"),
    "a folder": ("folder.json", "no such file|LLaVA records|not a regular"),
    "a bracket that is left open": ("[.json", "no such file"),
    "nothing in it": ("nothing.json", "it is empty"),
    "nested deeply": ("deep.json", "nested too deeply"),
    "zeros": ("zeros.json", "not JSON"),
}
"""What a source's `path` says."""
