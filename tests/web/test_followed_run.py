"""Runs that are watched: what is new is read, what was cut is noticed, nothing is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from konomi.errors import DataError
from konomi.runs.directory import RunDir
from konomi.web.followed_run import Tail
from label_site import Server, Site, make_project, serving


def run_of(path: Path, name: str = "one") -> RunDir:
    config = {"ppo": {"kl_target": 6.0, "kl_cap": 30.0, "kl_controller": "adaptive"}}
    run = RunDir.create(path, name, config, seed=0)
    for update in (1, 2, 3):
        run.append_metrics(update, {"objective/score": update / 2, "objective/kl": float("nan")})
        run.append_samples(update, [{"prompt": "今日", "response": f"half \ud83d {update}"}])
    return run


def test_a_run_as_it_grows(tmp_path: Path) -> None:
    run = run_of(tmp_path / "runs")
    before = {each.name: each.read_bytes() for each in run.path.iterdir()}
    site = Site(None, runs=[run.path, run_of(tmp_path / "runs", "two").path])
    client = site.owner()
    one, two = client.get("/api/runs").json()["runs"]
    assert (one["id"], one["name"], one["status"], one["updates"]) == (0, "one", "running", 3)
    assert (one["kl_target"], one["kl_cap"], two["name"]) == (6.0, 30.0, "two")
    said = client.get("/api/runs/0/metrics").json()
    assert [row["objective/score"] for row in said["rows"]] == [0.5, 1.0, 1.5]
    assert said["rows"][0]["objective/kl"] is None
    assert client.get("/api/runs/0/metrics?after=2").json()["rows"][0]["update"] == 3
    assert client.get("/api/runs/0/metrics?after=3").json()["rows"] == []
    texts = json.loads(client.get("/api/runs/0/samples").content)["samples"]
    assert texts[2]["response"] == "half \ud83d 3"
    said = client.get("/api/runs/0").json()["run"]
    assert (said["verb"], said["compare"], said["kl_cap"], said["config"]["ppo"]["kl_target"]) == ("ppo", None, 30.0, 6.0)
    assert {each.name: each.read_bytes() for each in run.path.iterdir()} == before
    with open(run.metrics, "ab") as file:
        file.write(b'{"update": 4, "objective/sc')  # a line that is being written
        file.flush()
        assert client.get("/api/runs/0/metrics?after=3").json()["rows"] == []
        file.write(b'ore": 2}\n')
    assert client.get("/api/runs/0/metrics?after=3").json()["rows"] == [{"update": 4, "objective/score": 2}]
    run.write_json("compare.json", {"version": 1, "before": {"kl": float("inf")}})
    run.set_status("finished")
    assert client.get("/api/runs/0").json()["run"]["compare"]["before"] == {"kl": None}
    last = client.get("/api/runs").json()["runs"][0]
    assert last["status"] == "finished" and last["results"] != one["results"] == []


def test_a_run_that_goes_back_to_a_checkpoint(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    client = Site(None, runs=[run.path]).owner()
    generation = client.get("/api/runs/0/metrics").json()["generation"]
    run.truncate_after(1)
    run.append_metrics(2, {"objective/score": 9.0})
    said = client.get(f"/api/runs/0/metrics?after=3&generation={generation}").json()
    assert [row["update"] for row in said["rows"]] == [1, 2]
    assert said["generation"] != generation
    assert client.get(f"/api/runs/0/metrics?after=2&generation={said['generation']}").json()["rows"] == []


def test_a_tail_survives_what_files_do(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    tail = Tail(path)
    assert tail.rows() == ([], 0)
    path.write_bytes(b'{"a": 1}\nnot json\n[1]\n{"a": 2}\n')
    assert tail.rows() == ([{"a": 1}, {"a": 2}], 0)
    path.unlink()
    assert tail.rows() == ([], 1)


def test_lines_of_no_update_are_left_out(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with open(run.metrics, "ab") as file:
        file.write(b'{"update": null, "objective/score": 1}\n{"update": "5"}\n{"update": true}\n{"objective/score": 1}\n')
    client = Site(None, runs=[run.path]).owner()
    assert [row["update"] for row in client.get("/api/runs/0/metrics").json()["rows"]] == [1, 2, 3]
    assert client.get("/api/runs").json()["runs"][0]["updates"] == 3


def test_texts_are_sent_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("konomi.web.api.SAMPLES", 2)
    run = run_of(tmp_path)
    client = Site(None, runs=[run.path]).owner()

    def texts(address: str) -> list[object]:
        said = json.loads(client.get(f"/api/runs/0/samples{address}").content)
        return [[each["update"] for each in said["samples"]], said["from"], said["next"], said["generation"]]

    assert texts("") == [[1, 2], 0, 2, 0]
    assert texts("?from=2&generation=0") == [[3], 2, 3, 0]
    assert texts("?from=3&generation=0") == [[], 3, 3, 0]
    run.append_samples(4, [{"prompt": "今日", "response": "x"}])
    assert texts("?from=3&generation=0") == [[4], 3, 4, 0]
    run.truncate_after(1)
    assert texts("?from=4&generation=0") == [[1], 0, 1, 1]
    assert texts("?from=-5") == [[1], 0, 1, 1]


def test_runs_and_numbers_that_are_none(tmp_path: Path) -> None:
    client = Site(None, runs=[run_of(tmp_path).path]).owner()
    for path in ("9/metrics", "9/samples", "-1/metrics", "x/metrics"):
        assert client.get(f"/api/runs/{path}").status_code == 404, path
    for after in ("x", "1e5", "9" * 50, "--1", "²"):
        assert client.get(f"/api/runs/0/metrics?after={after}").status_code == 400, after


def test_damaged_files_of_a_run_stop_nothing(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    client = Site(None, runs=[run.path]).owner()
    for name in ("run.json", "config.json", "compare.json"):
        (run.path / name).write_bytes(b"{")
    (said,) = client.get("/api/runs").json()["runs"]
    assert (said["status"], said["kl_cap"], said["updates"]) == (None, None, 3)
    assert client.get("/api/runs/0").json() == {"run": None}
    (run.path / "run.json").write_text('{"version": 1, "status": "running", "guards": 5}', encoding="utf-8")
    assert client.get("/api/runs").json()["runs"][0]["results"] == [(run.path / "compare.json").stat().st_mtime]


def test_only_runs_and_only_their_owner(tmp_path: Path) -> None:
    site = Site(None, runs=[run_of(tmp_path).path])
    assert site.client().get("/api/runs").status_code == 401
    assert site.client().get("/i/anything").status_code == 401
    client = site.owner()
    assert client.get("/", follow_redirects=False).headers["location"] == "/watch"
    assert '<html lang="ja"' in client.get("/watch", headers={"accept-language": "ja"}).text
    assert '<html lang="en"' in client.get("/watch").text
    for path in (
        "/api/me",
        "/api/next",
        "/guidelines",
        "/people",
        "/decisions",
        "/api/people",
        "/api/disputes",
        "/api/guidelines",
    ):
        assert client.get(path).status_code == 404, path
    with pytest.raises(DataError, match=r"not a run: there is no run.json in it"):
        Site(None, runs=[tmp_path])


def test_the_owner_of_a_project_may_watch_too(tmp_path: Path) -> None:
    site = Site(make_project(tmp_path / "P"), runs=[run_of(tmp_path).path])
    assert site.owner().get("/watch").status_code == 200
    assert site.person("Hana").get("/watch").status_code == 403
    assert site.person("Jiro").get("/api/runs/0/samples").status_code == 403
    site.close()


def test_konomi_watch(tmp_path: Path) -> None:
    run = run_of(tmp_path)
    with serving("watch", str(run.path)) as server:
        assert isinstance(server, Server)
        assert server.interrupt()[0] == 0
