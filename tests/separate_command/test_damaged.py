"""Damaged files by the hundred go through the command: no traceback, and a sentence for each."""

import json
import random

from tests.audio.test_fuzz import damaged, originals
from tests.separate_command.places import written

BAD = 320


def test_hundreds_of_damaged_files(run, tmp_path, cheap):
    (tmp_path / "real").mkdir()
    (tmp_path / "bad").mkdir()
    files = originals(tmp_path / "real")
    for number in range(BAD):
        chance = random.Random(1000 + number)
        suffix = chance.choice(sorted(files))
        path = tmp_path / "bad" / f"{number}.{suffix.replace('.', '-', suffix.count('.') - 1)}"
        path.write_bytes(damaged(files[suffix], chance))
    code, out, err = run(tmp_path / "bad", "--json", "--clip-mode", "none")
    assert code == 1
    found = json.loads(out)["tracks"]
    assert len(found) == BAD
    failed = [each for each in found if each["status"] == "failed"]
    assert BAD // 4 < len(failed) < BAD
    for each in failed:
        assert each["track"] in each["error"]
        assert "\n" not in each["error"]
        assert each["error"] in err
    done = [each for each in found if each["status"] == "done"]
    assert written() == {file for each in done for file in each["files"].values()}
