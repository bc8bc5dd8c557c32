"""examples/ray_serve.py on a real Ray: copies of the server behind Ray Serve's own proxy."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection
from importlib.util import find_spec
from typing import Any

import pytest
from rewarding import PATIENCE, ROOT, native, served

pytestmark = pytest.mark.clients
if find_spec("ray") is None:
    pytest.skip("Ray is not installed here: make test-clients", allow_module_level=True)

PORT, TOKEN = 18_300, "t0ken-of-the-cluster"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    import ray
    from ray import serve

    monkey = pytest.MonkeyPatch()
    monkey.setenv("RLAIF_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkey.setenv("RLAIF_TOKEN", TOKEN)
    monkey.syspath_prepend(str(ROOT / "examples"))
    from ray_serve import app  # pyright: ignore[reportMissingImports]

    ray.init(num_cpus=2, include_dashboard=False, runtime_env={"env_vars": {"PYTHONPATH": str(ROOT / "examples")}})
    serve.start(http_options={"port": PORT})
    settings = {"task": "helpfulness", "model": "fake:noise", "replicas": "2", "cpus": "0.1"}
    serve.run(app(settings))
    yield
    serve.shutdown()
    ray.shutdown()
    monkey.undo()


def ask(method: str, path: str, body: Any = None, *, token: str = TOKEN, status: int = 200) -> Any:
    with contextlib.closing(HTTPConnection("127.0.0.1", PORT, timeout=PATIENCE)) as connection:
        told = None if body is None else json.dumps(body)
        connection.request(method, path, told, {"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        read = answer.read()
        assert answer.status == status, read
        return json.loads(read)


def test_many_callers_get_the_rewards_of_a_server_without_ray():
    texts = [f"answer {at}" for at in range(200)]

    async def alone() -> list[float]:
        async with served() as web:
            return [each["reward"] for each in (await web.post("/v1/rewards", native(*texts))).json["items"]]

    wanted = asyncio.run(alone())
    with ThreadPoolExecutor(32) as callers:
        found = callers.map(lambda text: ask("POST", "/v1/rewards", native(text))["items"][0], texts)
        rewards = [each["reward"] for each in found]
    assert rewards == pytest.approx(wanted, abs=1e-9)


def test_other_dialects_and_the_probes_are_there():
    assert ask("GET", "/ready") == {"ready": True, "why": None}
    assert ask("GET", "/v1/models")["data"][0]["id"] == "fake:noise"
    assert isinstance(ask("POST", "/rm", {"prompt": "p", "response": "r", "label": ""}), float)


def test_the_token_is_the_drivers_and_is_wanted():
    refused = ask("POST", "/v1/rewards", native("x"), token="another", status=401)
    assert list(refused) == ["error"]


def test_without_a_token_it_does_not_begin(monkeypatch):
    from ray_serve import app  # pyright: ignore[reportMissingImports]

    monkeypatch.delenv("RLAIF_TOKEN")
    with pytest.raises(SystemExit, match="open=yes"):
        app({"task": "helpfulness", "model": "fake:noise"})
