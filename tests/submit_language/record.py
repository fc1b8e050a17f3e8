"""Writes htcondor.json: what HTCondor's own library makes of cases.txt.

Run with a Python that has htcondor 24 (`pip install htcondor==24.12.24`): the last versions of the package whose
`Submit.jobs` makes ads without a scheduler. Only the difference to a plain job's ad is written down.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
BASE = "executable = /bin/echo\nqueue\n"


def cases() -> list[str]:
    return (HERE / "cases.txt").read_text().split("=====\n")


def prepare(directory: Path) -> None:
    """The files that the cases name."""
    (directory / "sub").mkdir()
    (directory / "sub/x").write_text("")
    for name in ("a.dat", "b.dat", "in.txt"):
        (directory / name).write_text("")
    (directory / "job.sh").write_text("#!/bin/sh\n")
    (directory / "items.txt").write_text("x 1\ny, 2 3\n z,4\n")


def ads(text: str) -> list[dict[str, str]]:
    import htcondor

    jobs = htcondor.Submit(text).jobs(clusterid=7, qdate=1700000000, owner="ann")
    return [{name: str(ad.lookup(name)) for name in ad} for ad in jobs]


def outcome(text: str, base: dict[str, str], cwd: str) -> dict[str, Any]:
    try:
        found = ads(text)
    except Exception as error:
        return {"error": str(error)}
    differences = []
    for ad in found:
        new = {name: value.replace(cwd, "$CWD") for name, value in sorted(ad.items()) if base.get(name) != value}
        differences.append(new)
    return {"jobs": differences}


def main() -> None:
    os.environ["HOME"] = "/home/ann"
    with tempfile.TemporaryDirectory() as name:
        os.chdir(name)
        prepare(Path(name))
        cwd = os.getcwd()
        (base,) = ads(BASE)
        recorded = [{"text": text, **outcome(text, base, cwd)} for text in cases()]
        os.chdir("/")
    (HERE / "htcondor.json").write_text(json.dumps(recorded, indent=1) + "\n")


if __name__ == "__main__":
    main()
