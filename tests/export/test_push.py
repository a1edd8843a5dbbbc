"""Pushed files arrive with all their bytes, in one commit, at a stand-in for the hub."""

import base64
import hashlib
import json
import re
import socket
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from embed_jax.errors import InputError, RunError
from embed_jax.export.push import check_push, push

pytest.importorskip("huggingface_hub")
TOKEN = "hf_not-to-be-seen-0123456789"
LARGE = (
    10_000  # bytes, from which on the stand-in wants a file apart, as the hub does from 10 MB on
)


class Hub:
    """A stand-in for the hub on loopback: create, branch, preupload, LFS batch, upload, commit.

    Attributes:
        repositories: name -> branch -> path -> bytes. private: names. commits: (name, branch,
            message, paths).
        refuse: (part of a path, status) to answer with instead.
    """

    def __init__(self):
        self.repositories, self.private, self.commits, self.refuse = {}, set(), [], None
        self.stored, self.requests, hub = {}, [], self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b"".join(self.chunks())
                hub.requests.append((self.command, self.path, self.headers.get("Authorization")))
                status, answer = hub.answer(self.command, self.path, body, self.headers)
                data = json.dumps(answer).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = handle_any

            def chunks(self):
                while size := int(self.rfile.readline(), 16):
                    yield self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()

    def answer(self, method, path, body, headers):
        if self.refuse and self.refuse[0] in path:
            return self.refuse[1], {"error": "refused by the test"}
        if path.startswith("/store/"):
            self.stored[path.removeprefix("/store/")] = body
            return 200, {}
        if headers.get("Authorization") != f"Bearer {TOKEN}":
            return 401, {"error": "Invalid username or password."}
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if result := re.fullmatch(r"/([\w-]+/[\w-]+)\.git/info/lfs/objects/batch", path):
            return 200, self.batch(json.loads(body))
        result = re.fullmatch(
            r"/api/models/([\w-]+/[\w-]+)/(preupload|commit|branch|revision)/([\w-]+)(\?.*)?", path
        )
        if not result or result[1] not in self.repositories:
            return 404, {"error": f"{method} {path}: no such page"}
        name, what, branch = result[1], result[2], result[3]
        branches = self.repositories[name]
        if what == "branch":
            if branch in branches:
                return 409, {"error": "Reference already exists"}
            branches[branch] = dict(branches["main"])
            return 200, {}
        if branch not in branches:
            return 404, {"error": "Revision Not Found"}
        if what == "preupload":
            return 200, {
                "files": [
                    {
                        "path": file["path"],
                        "uploadMode": "lfs" if file["size"] >= LARGE else "regular",
                        "shouldIgnore": False,
                        "oid": None,
                    }
                    for file in json.loads(body)["files"]
                ]
            }
        return self.commit(name, branch, [json.loads(line) for line in body.splitlines()])

    def create(self, request):
        name = f"{request['organization']}/{request['name']}"
        if name in self.repositories:
            return 409, {
                "error": "You already created this model repo",
                "url": f"{self.url}/{name}",
            }
        self.repositories[name] = {"main": {".gitattributes": b"*.safetensors filter=lfs"}}
        if request.get("private") or request.get("visibility") == "private":
            self.private.add(name)
        return 200, {"url": f"{self.url}/{name}", "id": name, "name": name}

    def batch(self, request):
        return {
            "transfer": "basic",
            "objects": [
                {
                    **about,
                    "authenticated": True,
                    "actions": {"upload": {"href": f"{self.url}/store/{about['oid']}"}},
                }
                for about in request["objects"]
            ],
        }

    def commit(self, name, branch, lines):
        files = {}
        for line in lines:
            about = line["value"]
            if line["key"] == "file":
                files[about["path"]] = base64.b64decode(about["content"])
            elif line["key"] == "lfsFile":
                files[about["path"]] = self.stored[about["oid"]]
                assert hashlib.sha256(files[about["path"]]).hexdigest() == about["oid"]
            else:
                assert line["key"] == "header"
                message = about["summary"]
        self.repositories[name][branch] |= files
        self.commits.append((name, branch, message, sorted(files)))
        return 200, {
            "commitUrl": f"{self.url}/{name}/commit/1",
            "commitOid": "1" * 40,
            "hookOutput": "",
        }


@pytest.fixture
def standin(monkeypatch):
    stand_in = Hub()
    monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    # Read at import from the environment, where a hub of one's own would have them.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    yield stand_in
    stand_in.server.shutdown()
    stand_in.server.server_close()


@pytest.fixture
def directory(tmp_path):
    """A small and a large file, one in a folder."""
    files = {
        "README.md": b"---\ntags:\n- embed-jax\n---\n# model\n",
        "1_Pooling/config.json": b"{}\n",
        "model.safetensors": bytes(range(256)) * (LARGE // 128),
        "onnx/sentence_embedding.onnx": b"onnx" * LARGE,
    }
    for name, content in files.items():
        path = tmp_path / "out" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return tmp_path / "out", files


def test_every_file_arrives_in_one_commit(standin, directory):
    path, files = directory
    assert push(path, "me/model", private=True) == f"{standin.url}/me/model"
    result = standin.repositories["me/model"]["main"]
    assert {name: result[name] for name in files} == files and set(result) == {
        *files,
        ".gitattributes",
    }
    assert standin.commits == [("me/model", "main", "Export by embed-jax", sorted(files))]
    assert standin.private == {"me/model"} and len(standin.stored) == 2, "large files go apart"


def test_a_repository_that_is_there_is_written_to_again_and_keeps_what_is_its_own(
    standin, directory
):
    path, files = directory
    push(path, "me/model")
    standin.repositories["me/model"]["main"]["LICENSE"] = b"mine"
    (path / "README.md").write_bytes(b"new")
    push(path, "me/model", private=True, message="again")
    result = standin.repositories["me/model"]["main"]
    assert result["README.md"] == b"new" and result["LICENSE"] == b"mine"
    assert [message for *_, message, _ in standin.commits] == ["Export by embed-jax", "again"]
    assert not standin.private


def test_a_branch_is_made_and_main_left_alone(standin, directory):
    path, files = directory
    for _ in range(2):
        push(path, "me/model", revision="step-500")
    branches = standin.repositories["me/model"]
    assert branches["step-500"]["README.md"] == files["README.md"] and set(branches["main"]) == {
        ".gitattributes"
    }


@pytest.mark.parametrize(
    ("refuse", "kind", "message"),
    [
        (("/api/repos/create", 403), InputError, "answers 403: the token may not write there"),
        (("/preupload/", 404), InputError, "answers 404: no such organisation or repository"),
        (("/commit/", 413), InputError, "answers 413: .*refused by the test"),
        (("/commit/", 400), InputError, "answers 400"),
        (("/info/lfs/", 500), RunError, "answers 500|cannot be written to"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_line(
    standin, directory, refuse, kind, message, monkeypatch
):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    standin.refuse = refuse
    with pytest.raises(kind, match=message) as caught:
        push(directory[0], "me/model")
    assert (
        "\n" not in str(caught.value)
        and TOKEN not in str(caught.value)
        and "me/model" in str(caught.value)
    )
    assert not standin.commits, "nothing is there in part"


def test_a_wrong_token_is_said_in_one_line_and_not_shown(standin, directory, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(
        InputError, match="answers 401: the token is not accepted; set HF_TOKEN"
    ) as caught:
        push(directory[0], "me/model")
    assert "hf_wrong" not in str(caught.value) and "\n" not in str(caught.value)


def test_no_hub_at_all_is_said_in_one_line(standin, directory, monkeypatch):
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{free.getsockname()[1]}")
        with pytest.raises(RunError, match="cannot be written to .*refused") as caught:
            push(directory[0], "me/model")
    assert "\n" not in str(caught.value)


def test_what_can_be_known_without_the_hub_is_said_first(standin, directory, monkeypatch):
    for name in ("model", "a/b/c", "me/mo del", "/model"):
        with pytest.raises(InputError, match="--push-to-hub: expected OWNER/NAME, found"):
            push(directory[0], name)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="HF_HUB_OFFLINE is set"):
        push(directory[0], "me/model")
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    with pytest.raises(InputError, match="no token; set HF_TOKEN, or run `hf auth login` once"):
        check_push("me/model")
    assert not standin.requests
