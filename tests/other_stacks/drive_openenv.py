"""In OpenEnv's environment: its client against the server, over its protocol."""

import json
import socket
import subprocess
import sys
import time
from pathlib import Path

from openenv.core import GenericEnvClient


def ask(url: str, texts: dict[str, str]) -> dict[str, object]:
    found: dict[str, object] = {}
    with GenericEnvClient(base_url=url).sync() as client:
        for name, text in texts.items():
            question = client.reset(problem=name)
            assert question.observation["messages"][-1]["role"] == "user"
            try:
                found[name] = client.step({"text": text}).reward
            except RuntimeError as error:
                found[name] = None if "no verdict" in str(error) else str(error)
    return found


def main(problems: str, answers: str) -> dict[str, object]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "integrations.openenv_server", problems, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                except ConnectionRefusedError:
                    assert server.poll() is None
                    time.sleep(0.2)
            return {"by_problem": ask(f"http://127.0.0.1:{port}", json.loads(Path(answers).read_text()))}
        finally:
            server.terminate()


if __name__ == "__main__":
    print(json.dumps(main(*sys.argv[1:])))
