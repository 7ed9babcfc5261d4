"""The console has words for all that the farm may say."""

import re
from pathlib import Path

from shared.vocabulary.forecast import Reason

WORDS = (Path(__file__).parents[3] / "api/web/static/js/words.js").read_text()


def test_every_reason_to_wait_has_its_words() -> None:
    (block,) = re.findall(r"\breasons: \{(.*?)\}", WORDS, re.DOTALL)
    assert set(re.findall(r"(\w+): \"", block)) == set(Reason)
