"""Whether the files of an index are what was written."""

import json
import struct
import zlib
from pathlib import Path

_FOOTER = struct.Struct("<II")
_FOOTER_MAGIC = 1337


class FileDamaged(ValueError):
    """A file is not what was written."""


def check_files(path: Path) -> None:
    """Compares every file of the last commit with the checksum that tantivy has written at its end.

    Opening reads only the ends of the files, so damage in the middle of one would show as wrong results.

    Raises:
        ValueError, KeyError, OSError, struct.error: they are not.
    """
    meta = json.loads((path / "meta.json").read_text())
    # By segment the file of its deletions, if it has one. A kill may have left files that no commit names.
    deletions = {}
    for segment in meta["segments"]:
        name = segment["segment_id"].replace("-", "")
        deletions[name] = f"{name}.{segment['deletes']['opstamp']}.del" if segment["deletes"] else None
    for file in path.iterdir():
        name = file.name.split(".")[0]
        if name not in deletions or (file.suffix == ".del" and file.name != deletions[name]):
            continue
        data = file.read_bytes()
        length, magic = _FOOTER.unpack(data[-_FOOTER.size :])
        body = data[: -_FOOTER.size - length]
        if magic != _FOOTER_MAGIC or json.loads(data[len(body) : -_FOOTER.size])["crc"] != zlib.crc32(body):
            raise FileDamaged(f"{file.name} is not what was written")
