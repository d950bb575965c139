"""In verifiers' environment: each answer as a trace of the environment that `load_environment` gives, scored by it."""

import asyncio
import json
import sys
from pathlib import Path

import verifiers.v1 as vf


async def main(problems: str, texts: dict[str, str]) -> dict[str, object]:
    taskset: dict[str, object] = {"id": "atropos-livecode", "problems": problems}
    taskset["task"] = {"time_limit_s": 2.0, "memory_limit_mb": 512}
    environment = vf.load_environment(vf.resolve_env_config({"taskset": taskset}))
    found: dict[str, object] = {}
    for task in environment.taskset:
        trace = vf.Trace(
            task=vf.TraceTask(type=type(task).__name__, data=task.data, key=task.key, hash=task.hash),
            agent=vf.AgentInfo(config=environment.config.agent),
            root_reply=texts[task.data.id],
        )
        try:
            await task.score(trace)
            found[task.data.id] = trace.reward
        except vf.TaskError as error:
            found[task.data.id] = None if "NoVerdict" in str(error) else str(error)
    return {"by_problem": found}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))))
