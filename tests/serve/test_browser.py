"""The page in a browser (`.ci/browser`): axe, two windows, the keyboard, without JavaScript."""

import json
import os
import subprocess
import urllib.parse
from pathlib import Path

import pytest

from embed_jax.serve.app import make_app

from .conftest import ODD_ID

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif("BROWSER_MODULES" not in os.environ, reason="needs Chromium and axe-core"),
]
QUERY = "the cat and the river music"


@pytest.fixture(scope="module")
def visit(start, served, tmp_path_factory):
    """Returns what the browser reports, and the folder with its pictures."""
    output = Path(os.environ.get("BROWSER_PICTURES") or tmp_path_factory.mktemp("pictures"))
    words = urllib.parse.urlencode({"q": QUERY})
    task = {
        "chromium": os.environ.get("CHROMIUM", "/usr/bin/chromium"),
        "modules": os.environ["BROWSER_MODULES"],
        "url": start(make_app({"search": served}, embedders={"tiny": served.models["dense"]})),
        "output": str(output),
        "pages": {
            "home": "/",
            "results": f"/?{words}",
            "one": f"/?{words}&left=sparse&right=",
            "document": f"/document?{urllib.parse.urlencode({'id': ODD_ID, 'q': QUERY})}",
            "error": "/?q=a&k=0",
        },
    }
    script = Path(__file__).with_name("browser.js")
    done = subprocess.run(
        ["node", str(script), json.dumps(task)], capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout), output


def test_axe_finds_nothing_in_any_window(visit):
    report, pictures = visit
    assert len(report["pages"]) == 5 * 2 * 2
    for name, page in report["pages"].items():
        assert page["violations"] == [], name
        assert page["overflow"] <= 0, name  # nothing to scroll to the side for
        assert (pictures / f"{name}.png").stat().st_size > 5000


def test_nothing_of_a_text_is_executed_and_nothing_is_refused_by_the_policy(visit):
    for name, page in visit[0]["pages"].items():
        # The error's own status is the only thing that the console reports.
        others = [line for line in page["trouble"] if "status of 400" not in line]
        assert others == [], name


def test_arrow_keys_go_through_the_results(visit):
    report = visit[0]["keyboard"]
    down, second, up, right, escape = report["steps"]
    assert (down, second, up, escape) == ("l1", "l2", "l1", "q") and right.startswith("r")
    assert report["opened"]


def test_it_works_without_javascript(visit):
    report = visit[0]["plain"]
    assert report["count"] > 4 and report["isOpen"] and report["trouble"] == []
    assert report["hasNoKeys"]  # which the page tells of only where they work
