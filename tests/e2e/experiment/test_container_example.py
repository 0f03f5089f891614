"""The example of docs/containers.md, run as it stands there."""

import json
import re
import textwrap

import pytest

from quicferry.paths import CHECKOUT
from quicferry.process import run

pytestmark = pytest.mark.needs("mininet", "tshark", "oci", "criu-lazy-pages")


def test_the_example_of_a_container_of_ones_own_moves(tmp_path):
    page = (CHECKOUT / "docs" / "containers.md").read_text()
    section = page.partition("## Your own container")[2]
    example = textwrap.dedent(re.search(r"\n\n((?:    .*\n)+)", section)[1])
    assert "--image" in example and "bin/quicferry run" in example
    script = example.rstrip().replace("bin/quicferry", str(CHECKOUT / "bin" / "quicferry"))
    done = run(["sh", "-e", "-c", f"{script} --json --runs runs"], cwd=tmp_path, check=False, timeout_s=300)
    result = json.loads(done.stdout)
    assert (result["outcome"], result["requests_lost"]) == ("succeeded", 0), done.stderr
    assert result["spec"]["image"] == str(tmp_path / "image")
    assert result["transferred_bytes"] > 20 << 20, "the files of the container crossed, too"
