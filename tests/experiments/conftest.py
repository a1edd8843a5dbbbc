"""Data that the experiments' tests share."""

import json

import numpy as np
import pytest

WORDS = "cat dog house river music guitar red blue city train apple bread science model".split()


@pytest.fixture
def word_pairs(tmp_path):
    """A file of 60 pairs: two words, and a text of five that has them."""
    rng, path = np.random.default_rng(0), tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(60):
            words = rng.choice(WORDS, 5, replace=False)
            pair = {"anchor": " ".join(words[:2]), "positive": f"{' '.join(words)} {number}"}
            file.write(json.dumps(pair) + "\n")
    return path
