"""Images of every kind that a folder of pictures may hold: sound ones, which must give Pillow's pixels, and those to be refused by name."""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_sample_images

PICTURE = Image.fromarray(load_sample_images().images[1]).resize((150, 101))
# 24 x 20 pixels each, by libjpeg-turbo's encoder: what Pillow does not write
_CODED = {
    "arithmetic":
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//"
        "2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//yQARCAAUABgDASIAAhEBAxEB/8wA"
        "CgAQEAUBEBEF/9oADAMBAAIRAxEAPwD/AKAA1TEI6lkRGmnTI79SnmPbbmvAn3B0c63FKMAQzqpp3iqtl8FvUnkCZR5EamA+iYoCsHodGivbW5MJJRYtP3t0"
        "Uvgv66p1zqe11Y5ogO8Z2+kpiHvo5QRxXCjzK3rEqEL6USiivD+8HlR5wVwR+boX6uGLPN72H4yUHvSkTuuAgKU8HimiiuPBmUFKq6c7dHawSTvEkdFroANv"
        "2TCPCz4cuqUt4MY7DDt6PDvYoRWU/9k=",
    "arithmetic_progressive":
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//"
        "2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//ygARCAAUABgDAREAAhEBAxEB/8wA"
        "BgAQARD/2gAMAwEAAhADEAAAAf8AP/21ZDAnHbzizJ2afiLLkSuVaLBT6r6EP+D/zAAEEAX/2gAIAQEAAQUCKeZDS4ripvXDb0jHjdXyjMcxSv/MAAQRBf/a"
        "AAgBAwEBPwEeWURMKrQWQYN7yrJ5O7e4o5UfnBf/zAAEEQX/2gAIAQIBAT8BVS7IkKu8XuIzmnM6SGzc/8wABBAF/9oACAEBAAY/ApObuWH6BR55c4KO99jG"
        "egNw8jr/zAAEEAX/2gAIAQEAAT8hELsZp7TvqX0uPddDG7JE/mNcUK950JlTi1sLya2tDv/aAAwDAQACAAMAAAAQTnFCgP/MAAQRBf/aAAgBAwEBPxBZKB00"
        "XzIvozCuI+sOuA2A/8wABBEF/9oACAECAQE/EMfbRswkwuinlbPPzW3mfOih/8wABBAF/9oACAEBAAE/EEnCBt7gg9/vJb8/kIa4rOTh2YddqVlxYWG9xpG4"
        "oFSOO9sfyvGHb47mk/8Al+0scLQuZP/Z",
    "sampled_4_1_0":
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//"
        "2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAUABgDAUIAAhEBAxEB/8QA"
        "FwABAQEBAAAAAAAAAAAAAAAAAAYEBf/EACoQAAICAQEGBAcAAAAAAAAAAAECAAMEEQUGEhMhMRQVQVEiI1JhcYGx/8QAFwEAAwEAAAAAAAAAAAAAAAAAAAEC"
        "A//EAB0RAAIDAAIDAAAAAAAAAAAAAAECAAMRQVFhwfD/2gAMAwEAAhEDEQA/AIuzEutCV1fHYzBVHv6TvPurlLhlRlUveq6mpQevTsDJ9KwUFigr9iYm3Bz6"
        "qdq4zOQFSwcRPaVaIac2zNez5IBYk+0iLW43tesEKzFgv5OsRI5NjDqY2VKKkbk7sxZPdSO8uN0sGjO2TzssNYeYV0Lnh00Hp+5wfDp5nlUgsEQWEDX6QSP5"
        "ERESNIY549wcA1r91P/Z",
    "sampled_4_4_1":
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//"
        "2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAUABgDARQAAhEBAxEB/8QA"
        "GAAAAwEBAAAAAAAAAAAAAAAAAAQGBQH/xAAqEAACAQICBwkAAAAAAAAAAAABAgMABBExBQYSEyFBURQVIiNSYXGBsf/EABYBAQEBAAAAAAAAAAAAAAAAAAUE"
        "Av/EABwRAQADAAIDAAAAAAAAAAAAAAEAAhEDEhMhMv/aAAwDAQACEQMRAD8Ai5LSaUJHF45GYKo68qbsb+KHStszkBUkG0TlWNc5qRnRWrKmEl4aY9l2Vj6q"
        "3S2ZUXULzquJiUHjwyBrYRDDeyXryeSAWJPSk9UrGC+0TvrsNId4VwLnZwwHL7oqC3cfpihbisZ4ySaRgoJFBX2JrsrbbyvGCFZiwX5ONO9nTvO6hBYIgkIG"
        "PpBI/KKQHCDvtn//2Q==",
    "sampled_oddly":
        "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAA0JCgsKCA0LCgsODg0PEyAVExISEyccHhcgLikxMC4pLSwzOko+MzZGNywtQFdBRkxOUlNSMj5aYVpQYEpRUk//"
        "2wBDAQ4ODhMREyYVFSZPNS01T09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT09PT0//wAARCAAUABgDASIAAiEBAxEB/8QA"
        "GAABAQEBAQAAAAAAAAAAAAAAAAYFAQT/xAAqEAACAgEBBgQHAAAAAAAAAAABAgADBBEFBhITITEUFUFRIiNSYXGBsf/EABgBAQADAQAAAAAAAAAAAAAAAAQA"
        "AgUB/8QAHxEBAAIBBAMBAAAAAAAAAAAAAQACAwQREiEUMWGh/9oADAMBAAIRAxEAPwCLsxLrQldXx2MwVR7+k3n3VylwyoyqXvVdTUoPXp2BmZg59VO1cZnI"
        "CpYOIntKtENObZmvZ8kAsSfaXuhRT3M3ycr1+Tuh09MtLOX2SHSsFBYoK/YmJ21uN7XrBCsxYL+TrE0qpt9kgeO69zxZPdSO8uN0sGjO2TzssNYeYV0Lnh00"
        "Hp+4iUgs6j1G6YFBmD4dPM8qkFgiCwga/SCR/IiI26lBPkkJxJ//2Q==",
}
EXTENSIONS = {b"\xff\xd8": "jpg", b"\x89P": "png", b"RI": "webp", b"BM": "bmp"}


def encode(image, format, **options):
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


# JPEG

class _Bits:
    def __init__(self):
        self.text = []

    def put(self, value, count):
        if count:
            self.text.append(f"{value:0{count}b}")

    def stuffed(self):
        text = "".join(self.text)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def segment(marker, body):
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def lossless(pixels, bits=8):
    """A lossless JPEG (ITU T.81, annex H) by predictor 1; pixels (h, w) or (h, w, 3), as RGB by Adobe's marker.  Every size of a difference
    has a code of five bits."""
    pixels = np.atleast_3d(pixels).astype(int)
    height, width, count = pixels.shape
    out = _Bits()
    for row in range(height):
        for column in range(width):
            for part in range(count):
                before = pixels[row, column - 1, part] if column else pixels[row - 1, 0, part] if row else 1 << (bits - 1)
                difference = int(pixels[row, column, part] - before)
                size = abs(difference).bit_length()
                out.put(size, 5)
                out.put(difference if difference > 0 else difference + (1 << size) - 1, size)
    frame = struct.pack(">BHHB", bits, height, width, count) + b"".join(bytes([65 + part, 0x11, 0]) for part in range(count))
    scan = bytes([count]) + b"".join(bytes([65 + part, 0]) for part in range(count)) + b"\x01\0\0"
    codes = b"\0" + bytes([0] * 4 + [17] + [0] * 11) + bytes(range(17))
    return (b"\xff\xd8" + (segment(0xEE, b"Adobe\0d\0\0\0\0\0") if count == 3 else b"") + segment(0xC3, frame) + segment(0xC4, codes)
            + segment(0xDA, scan) + out.stuffed() + b"\xff\xd9")


def with_segments(data, *segments):
    """Behind its first marker."""
    return data[:2] + b"".join(segments) + data[2:]


def of_process(data, marker, bits=8):
    """Said to be coded in another way, or to have other samples."""
    at = data.index(b"\xff\xc0")
    return data[:at + 1] + bytes([marker]) + data[at + 2:at + 4] + bytes([bits]) + data[at + 5:]


def jpegs():
    """name -> bytes"""
    plain, turned = encode(PICTURE, "JPEG", quality=85), Image.Exif()
    turned[0x0112] = 6
    broken_icc = [segment(0xE2, b"ICC_PROFILE\0" + bytes([number, total]) + b"profile") for number, total in ((2, 1), (1, 3), (0, 0))]
    found = {f"jpeg_{name}": encode(PICTURE, "JPEG", **options) for name, options in {
        "baseline": {}, "progressive": {"progressive": True}, "optimised": {"optimize": True}, "coarse": {"quality": 3},
        "4:4:4": {"subsampling": 0},
        "4:2:2": {"subsampling": 1}, "4:1:1": {"subsampling": "4:1:1"}, "restarts": {"restart_marker_blocks": 3},
        "turned": {"exif": turned}, "icc": {"icc_profile": b"p" * 100_000}, "rgb": {"keep_rgb": True},
        "progressive_restarts": {"progressive": True, "restart_marker_rows": 1}}.items()}
    found |= {f"jpeg_{mode}": encode(PICTURE.convert(mode), "JPEG", **options) for mode, options in {
        "L": {}, "CMYK": {}}.items()}
    found |= {f"jpeg_{name}": base64.b64decode(coded) for name, coded in _CODED.items()}
    found |= {f"jpeg_broken_icc_{number}": with_segments(plain, one) for number, one in enumerate(broken_icc)}
    found |= {
        "jpeg_padded": plain[:-2] + b"\x05\x05\xff\xd9", "jpeg_trailing_bytes": plain + b"after the end" * 50,
        "jpeg_empty_segments": with_segments(plain, segment(0xE1, b""), segment(0xFE, b""), segment(0xE0, b"JFXX\0")),
        "jpeg_fill_bytes": plain[:2] + b"\xff\xff\xff" + plain[2:],
        "jpeg_lossless": lossless(np.asarray(PICTURE)), "jpeg_lossless_grey": lossless(np.asarray(PICTURE.convert("L"))),
        "jpeg_lossless_large": lossless(np.asarray(PICTURE.resize((200, 150)))),
    }
    return found


# PNG

def png_chunk(kind, body):
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width, height, depth, colour, rows, *between, interlace=0):
    """rows: with their filter bytes.  between: chunks that stand before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    return (b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + b"".join(between) + png_chunk(b"IDAT", zlib.compress(rows))
            + png_chunk(b"IEND", b""))


def animation_control(frames):
    return png_chunk(b"acTL", struct.pack(">II", frames, 0))


def frame_control(number, width, height, left=0, top=0):
    return png_chunk(b"fcTL", struct.pack(">IIIIIHHBB", number, width, height, left, top, 1, 10, 0, 0))


def frame_data(number, rows):
    return png_chunk(b"fdAT", struct.pack(">I", number) + zlib.compress(rows))


def filtered(width, height, filter=0, value=85):
    return (bytes([filter]) + bytes([value]) * 3 * width) * height


def pngs():
    rng = np.random.Generator(np.random.Philox(5))
    found = {f"png_{mode}": encode(PICTURE.convert(mode), "PNG") for mode in ("RGB", "RGBA", "L", "LA", "P", "1")}
    for colour, depths, samples in ((0, (1, 2, 4, 8, 16), 1), (2, (8, 16), 3), (3, (1, 2, 4, 8), 1), (4, (8, 16), 2), (6, (8, 16), 4)):
        for depth in depths:
            line = 1 + (30 * depth * samples + 7) // 8
            rows = bytearray(rng.integers(0, 2 if colour == 3 else 256, 20 * line, np.uint8).tobytes())
            rows[::line] = bytes(number % 5 for number in range(20)) if colour != 3 else bytes(20)
            palette = (png_chunk(b"PLTE", rng.bytes(3 << depth)), png_chunk(b"tRNS", b"\0")) if colour == 3 else ()
            found[f"png_type_{colour}_bits_{depth}"] = png(30, 20, depth, colour, bytes(rows), *palette)
    still = encode(PICTURE, "PNG")
    end = len(still) - 12
    inside = png(64, 64, 8, 2, filtered(64, 64), animation_control(2), frame_control(0, 64, 64))
    found |= {
        "png_animated": encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)]),
        "png_animated_apart": encode(PICTURE, "PNG", save_all=True, append_images=[PICTURE.rotate(180)], default_image=True),
        "png_frame_outside": png(40, 40, 8, 2, filtered(40, 40), animation_control(2), frame_control(0, 400, 400, 20, 20)),
        "png_frame_with_a_bad_filter": inside[:-12] + frame_control(1, 64, 64) + frame_data(2, filtered(64, 64, 77)) + inside[-12:],
        "png_frame_that_is_short": inside[:-12] + frame_control(1, 64, 64) + frame_data(2, filtered(64, 3)) + inside[-12:],
        "png_frames_promised": png(40, 40, 8, 2, filtered(40, 40), animation_control(1 << 30)),
        "png_text": still[:33] + png_chunk(b"zTXt", b"a\0\0" + zlib.compress(bytes(5_000_000))) + still[33:end]
        + png_chunk(b"tEXt", b"a\0b") + still[end:],
    }
    return found


# BMP

def bitmap(header, bits, palette, body):
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def run_length(rows, padded, bits=8):
    """RLE8 or RLE4 of (h, w) numbers, from the bottom up.  padded: each row's runs go up to a multiple of four, past the width."""
    out = bytearray()
    for row in rows[::-1]:
        row = list(row) + [row[-1]] * (-len(row) % 4 if padded else 0)
        at = 0
        while at < len(row):
            count = 1
            while at + count < len(row) and count < 255 and row[at + count] == row[at]:
                count += 1
            out += bytes([count, row[at] if bits == 8 else row[at] << 4 | row[at]])
            at += count
        out += b"\0\0"
    return bytes(out) + b"\0\x01"


def bitmaps():
    numbers = np.asarray(PICTURE.convert("L").resize((61, 30))) // 32
    palette3, palette4 = (b"".join(bytes([one * 30, 255 - one * 30, one * 7]) + end for one in range(8)) for end in (b"", b"\0"))
    rows = b"".join(bytes(row) + bytes(-len(row) % 4) for row in numbers[::-1])

    def info(size, height=30, bits=8, compression=0, length=0):
        return (struct.pack("<IiiHHIIiiII", 40, 61, height, 1, bits, compression, length, 0, 0, 8, 0) + bytes(100))[:size].replace(
            struct.pack("<I", 40), struct.pack("<I", size), 1)

    found = {f"bmp_{mode}": encode(PICTURE.convert(mode), "BMP") for mode in ("RGB", "L", "P", "1")}
    found |= {
        "bmp_os2_1": bitmap(struct.pack("<IHHHH", 12, 61, 30, 1, 8), 8, palette3 + bytes(3 * 248), rows),
        "bmp_os2_2": bitmap(info(64), 8, palette4, rows),
        "bmp_top_down": bitmap(info(40, -30), 8, palette4, b"".join(bytes(row) + bytes(-len(row) % 4) for row in numbers)),
        "bmp_32_bits": bitmap(struct.pack("<IiiHHIIiiII", 40, 20, 20, 1, 32, 0, 0, 0, 0, 0, 0), 32, b"", bytes(range(256)) * 6 + bytes(64)),
        "bmp_16_bits": bitmap(struct.pack("<IiiHHIIiiII", 40, 20, 20, 1, 16, 0, 0, 0, 0, 0, 0), 16, b"", (bytes(range(256)) * 4)[:800]),
    }
    for padded in (False, True):
        for bits, compression in ((8, 1), (4, 2)):
            body = run_length(numbers, padded, bits)
            header = info(40, bits=bits, compression=compression, length=len(body))
            found[f"bmp_rle{bits}{'_padded' * padded}"] = bitmap(header, bits, palette4, body)
    return found


# The others

def webps():
    turned = Image.Exif()
    turned[0x0112] = 3
    moving = {"save_all": True, "append_images": [PICTURE.rotate(90).resize(PICTURE.size)], "duration": 50}
    return {f"webp_{name}": encode(image, "WEBP", **options) for name, (image, options) in {
        "lossy": (PICTURE, {"quality": 70}), "lossless": (PICTURE, {"lossless": True}), "alpha": (PICTURE.convert("RGBA"), {}),
        "half_seen": (Image.merge("RGBA", (*PICTURE.split(), PICTURE.convert("L"))), {"quality": 70}),
        "half_seen_lossless": (Image.merge("RGBA", (*PICTURE.split(), PICTURE.convert("L"))), {"lossless": True, "exact": True}),
        "exif": (PICTURE, {"exif": turned.tobytes(), "icc_profile": b"p" * 500}), "animated": (PICTURE, moving),
        "animated_lossless": (PICTURE, moving | {"lossless": True}),
        "one_colour": (Image.new("RGB", (40, 30), (9, 99, 200)), {"lossless": True}),
        "one_pixel": (Image.new("RGB", (1, 1), "red"), {"lossless": True}), "tiny": (Image.new("RGB", (1, 1), "red"), {}),
    }.items()}


def others():
    return {
        "gif": encode(PICTURE, "GIF"),
        "gif_animated": encode(PICTURE.convert("P"), "GIF", save_all=True, append_images=[PICTURE.rotate(180).convert("P")]),
        "gif_interlaced": encode(PICTURE.convert("L"), "GIF", interlace=True), "tiff": encode(PICTURE, "TIFF"),
        "tiff_lzw": encode(PICTURE, "TIFF", compression="tiff_lzw"), "tiff_jpeg": encode(PICTURE, "TIFF", compression="jpeg"),
        "tiff_cmyk": encode(PICTURE.convert("CMYK"), "TIFF"), "tiff_1": encode(PICTURE.convert("1"), "TIFF", compression="group4"),
        "avif": encode(PICTURE, "AVIF"), "avif_alpha": encode(PICTURE.convert("RGBA"), "AVIF"),
    }


def sound():
    return jpegs() | pngs() | bitmaps() | webps() | others()


def refused():
    """name -> (bytes, reason, what must be said of it)"""
    plain = encode(PICTURE, "JPEG", quality=85)
    at = plain.index(b"\xff\xc0")
    deep = (np.asarray(PICTURE.resize((40, 30)).convert("L")).astype(int) * 16) + 5
    still = encode(PICTURE, "PNG")
    frames = {0xC5: "hierarchical", 0xC6: "hierarchical", 0xC7: "lossless hierarchical", 0xCB: "lossless arithmetic", 0xCD: "hierarchical",
              0xCF: "lossless hierarchical"}
    found = {f"jpeg_process_{marker:02x}": (of_process(plain, marker), "format", f"is a {name}") for marker, name in frames.items()}
    found |= {
        "jpeg_12_bits": (of_process(plain, 0xC1, 12), "format", "12 bits"),
        "jpeg_lossless_12_bits": (lossless(deep, 12), "format", "lossless JPEG of 12 bits"),
        "jpeg_two_components": (plain[:at + 3] + bytes([14]) + plain[at + 4:at + 9] + b"\x02" + plain[at + 10:at + 16] + plain[at + 19:],
                                "format", "2 components"),
        "jpeg_height_behind": (plain[:at + 5] + b"\0\0" + plain[at + 7:], "format", "DNL"),
        "jpeg_without_an_end": (plain[:-700], "truncated", "without its end"),
        "jpeg_two_frames": (plain[:at] + plain[at:at + 19] + plain[at:], "decode", "two frames"),
        "png_bad_filter": (png(64, 64, 8, 2, filtered(64, 64, 77)), "decode", ""),
        "png_bad_filter_animated": (png(64, 64, 8, 2, filtered(64, 64, 77), animation_control(1), frame_control(0, 64, 64)), "decode", ""),
        "png_too_few_rows": (png(64, 64, 8, 2, filtered(64, 10)), "truncated", ""),
        "png_no_such_depth": (png(8, 8, 3, 2, bytes(100)), "decode", "colour type 2, 3 bits"),
        "png_wrong_checksum": (still[:60] + bytes([still[60] ^ 1]) + still[61:], "decode", "checksum"),
        "png_cut": (still[:-40], "truncated", "cut inside"),
        "webp_cut": (encode(PICTURE, "WEBP")[:-50], "truncated", "without its end"),
        "tiff_of_floats": (encode(Image.fromarray(np.ones((20, 30), np.float32)), "TIFF"), "format", "32 bits a sample"),
        "heic": (b"\0\0\0\x18ftypheic" + bytes(60), "format", "is HEIC"),
        "jpeg_2000": (encode(PICTURE, "JPEG2000"), "format", "is JPEG 2000"),
        "svg": (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "format", "is SVG"), "text": (b"no image" * 20, "format", "is no JPEG"),
    }
    return found
