"""The API server beside Atropos' own, in one run: groups in, a batch out, and whether /status is held up meanwhile.

    python benchmarks/api.py [--rounds 3] [--groups 4] [--rollouts 16] [--tokens 32768] [--before FOLDER] [--out FILE]

--before: another checkout, whose server is measured in pairs with this one's instead of Atropos' own. Each server is a
process of its own, ours with a journal on the disk of --folder. The groups are sent in binary form (to ours alone), as
gzipped JSON and as plain JSON, after some small ones, and read back in the same form; peak memory is that of the
server's process. Every figure is the median of its rounds, taken in turns; /status is the longest answer that a second
process saw while the other requests were under way. CPU seconds are per million tokens: of making the bodies, of the
server for taking and for serving them, and of the trainer's client from the answer's bytes to groups.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import platform
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx

from environments.common.group_bytes import MEDIA_TYPE, split
from environments.livecode.atropos_compat import encode_group
from trainer.data.scored_groups import Reading, parse_group

SMALL = 50
FORMS = ("binary", "gzip", "plain")
STOCK = "import uvicorn, sys; uvicorn.run('atroposlib.api.server:app', port=int(sys.argv[1]), log_level='warning')"


def make_group(number: int, rollouts: int, tokens: int) -> dict[str, Any]:
    """A group of random tokens, prompt 500 tokens, one weight version."""
    rng = random.Random(number)
    prompt = min(500, tokens // 2)
    question = [rng.randrange(150_000) for _ in range(prompt)]
    rows = [question + [rng.randrange(150_000) for _ in range(tokens - prompt)] for _ in range(rollouts)]
    return {
        "tokens": rows,
        "masks": [[-100] * prompt + row[prompt:] for row in rows],
        "scores": [float(index % 2 * 2 - 1) for index in range(rollouts)],
        "inference_logprobs": [[1.0] * prompt + [-rng.expovariate(3) for _ in row[prompt:]] for row in rows],
        "overrides": [
            {"set_advantage_to_zero": False, "finish_reason": "stop", "versions": [[3, 0, tokens - prompt]]}
            for _ in rows
        ],
        "group_overrides": {"group_id": f"g{number}", "problem_id": "p", "temperature": 0.7, "context": tokens},
    }


def watch(url: str, stop: Any, longest: Any) -> None:
    """Asks for /status every 20 ms and keeps the longest wait."""
    with httpx.Client(timeout=120, trust_env=False) as client:
        while not stop.is_set():
            start = time.monotonic()
            client.get(f"{url}/status")
            longest.value = max(longest.value, time.monotonic() - start)
            time.sleep(0.02)


@contextlib.contextmanager
def serving(name: str, folder: Path, before: Path | None) -> Iterator[tuple[str, int]]:
    """A fresh server; its address and process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    ours = ["-m", "environments.cli", "run-api", "--port", port, "--journal", str(folder / "journal")]
    argv = {"stock": ["-c", STOCK, port], "ours": ours, "before": ours}[name]
    where = before if name == "before" else None
    process = subprocess.Popen([sys.executable, *argv], stderr=subprocess.DEVNULL, cwd=where)
    url = f"http://127.0.0.1:{port}"
    try:
        while True:
            try:
                httpx.get(f"{url}/", trust_env=False).raise_for_status()
                break
            except httpx.TransportError:
                assert process.poll() is None
                time.sleep(0.05)
        yield url, process.pid
    finally:
        process.kill()
        process.wait()


def peak_mib(pid: int) -> float:
    """The most memory that a process has had resident."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def cpu_s(pid: int) -> float:
    """Processor seconds that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def read(answer: httpx.Response, form: str) -> float:
    """CPU seconds of the trainer's client from an answer's bytes to groups."""
    reading = Reading(1.0, 1 << 20, 1 << 20, recompute=False)
    started = time.process_time()
    batch = split(answer.content) if form == "binary" else answer.json()["batch"]
    for group in batch:
        group["overrides"] = group["overrides"] or None
        parse_group(group, reading)
    return time.process_time() - started


def encode(groups: list[dict[str, Any]], form: str) -> tuple[list[bytes], float]:
    """The groups' bodies, and the CPU seconds that they took."""
    started = time.process_time()
    if form == "plain":
        bodies = [json.dumps(group, separators=(",", ":")).encode() for group in groups]
    else:
        bodies = [encode_group(group, packed=form == "binary") for group in groups]
    return bodies, time.process_time() - started


def measure(
    name: str, bodies: list[bytes], form: str, rollouts: int, folder: Path, before: Path | None
) -> dict[str, float]:
    """Seconds of a small POST (the median), of each POST (the longest), of GET /batch, and of /status meanwhile (the
    longest); MiB of the server's peak memory; CPU seconds of server and client; bytes of the answer."""
    headers = {"Content-Type": MEDIA_TYPE if form == "binary" else "application/json"}
    headers |= {"Content-Encoding": "gzip"} if form == "gzip" else {}
    registration = dict.fromkeys(("wandb_group", "wandb_project", "checkpoint_dir"), "") | {
        "batch_size": len(bodies) * rollouts,
        "max_token_len": -1,
        "save_checkpoint_interval": -1,
        "starting_step": 0,
        "num_steps": 1,
    }
    stop, longest = multiprocessing.Event(), multiprocessing.Value("d", 0.0)
    with serving(name, folder, before) as (url, pid), httpx.Client(timeout=300, trust_env=False) as client:
        smalls = []
        if name != "stock":  # it would hold them against its trainer
            client.post(f"{url}/register", json=registration | {"batch_size": SMALL}).raise_for_status()
            for number in range(SMALL):
                body = json.dumps(make_group(10_000 + number, 1, 50)).encode()
                start = time.monotonic()
                client.post(f"{url}/scored_data", content=body).raise_for_status()
                smalls.append(time.monotonic() - start)
            assert len(client.get(f"{url}/batch").json()["batch"]) == SMALL
        client.post(f"{url}/register", json=registration).raise_for_status()
        watcher = multiprocessing.Process(target=watch, args=(url, stop, longest))
        watcher.start()
        posts, used = [], cpu_s(pid)
        for body in bodies:
            start = time.monotonic()
            client.post(f"{url}/scored_data", content=body, headers=headers).raise_for_status()
            posts.append(time.monotonic() - start)
        taken = cpu_s(pid)
        start = time.monotonic()
        answer = client.get(f"{url}/batch", headers={"Accept": headers["Content-Type"]}).raise_for_status()
        batch, served = time.monotonic() - start, cpu_s(pid)
        stop.set()
        watcher.join()
        memory = peak_mib(pid)
    reader = read(answer, form)
    small = statistics.median(smalls) if smalls else float("nan")
    return {
        "small": small, "post": max(posts), "batch": batch, "status": longest.value, "peak_mib": memory,
        "cpu_take": taken - used, "cpu_serve": served - taken, "cpu_read": reader,
        "answer_mb": len(answer.content) / 1e6,
    }  # fmt: skip


def parsed() -> argparse.Namespace:
    """The command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--groups", type=int, default=4)
    parser.add_argument("--rollouts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=32_768)
    parser.add_argument("--folder", type=Path, default=None, help="where the journal lies; default: the system's")
    parser.add_argument("--before", type=Path, default=None, help="a checkout to compare with")
    parser.add_argument("--out", type=Path, default=None)
    return parser.parse_args()


def main() -> None:
    """Command line."""
    options = parsed()
    groups = [make_group(number, options.rollouts, options.tokens) for number in range(options.groups)]
    bodies = {form: encode(groups, form) for form in FORMS}
    tokens = options.groups * options.rollouts * options.tokens / 1e6
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for _ in range(options.rounds):
        for form in FORMS:
            for name in ("ours", "before" if options.before else "stock"):
                if form == "binary" and name != "ours":
                    continue
                made, seconds = encode(groups, form)
                with tempfile.TemporaryDirectory(dir=options.folder) as folder:
                    result = measure(name, made, form, options.rollouts, Path(folder), options.before)
                result |= {key: value / tokens for key, value in result.items() if key.startswith("cpu_")}
                found.setdefault((name, form), []).append(result | {"cpu_make": seconds / tokens})
    sizes = {form: len(made[0]) / 1e6 for form, (made, _) in bodies.items()}
    print(
        f"{options.groups} groups of {options.rollouts} x {options.tokens} tokens, each "
        f"{', '.join(f'{size:.1f} MB {form}' for form, size in sizes.items())}; Python {platform.python_version()}, "
        f"{os.cpu_count()} CPUs; median of {options.rounds} rounds, in seconds; load average {os.getloadavg()[0]:.0f}\n"
    )
    print(
        "| server | sent as | small POST | POST, longest | GET /batch | /status meanwhile, longest | peak MiB "
        "| CPU to make | to take | to serve | to read | answer MB |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|---|---|")
    table = {}
    for (name, form), rounds in found.items():
        row = {key: statistics.median(one[key] for one in rounds) for key in rounds[0]}
        table[f"{name} {form}"] = row
        print(
            f"| {name} | {form} | {row['small']:.4f} | {row['post']:.2f} | {row['batch']:.2f} | {row['status']:.2f} "
            f"| {row['peak_mib']:.0f} | {row['cpu_make']:.3f} | {row['cpu_take']:.3f} | {row['cpu_serve']:.3f} "
            f"| {row['cpu_read']:.3f} | {row['answer_mb']:.1f} |"
        )
    if options.out:
        said = {
            "command": " ".join(["python", *sys.argv]), "machine": f"{platform.machine()}, {os.cpu_count()} CPUs",
            "load average": os.getloadavg()[0], "MB of a group": sizes,
        }  # fmt: skip
        rounds_of = {f"{name} {form}": rounds for (name, form), rounds in found.items()}
        options.out.write_text(json.dumps(said | {"medians": table, "rounds": rounds_of}, indent=1) + "\n")


if __name__ == "__main__":
    main()
