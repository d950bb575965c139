"""In verl's environment: the answers through its own loader of reward functions and its naive reward manager."""

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from verl import DataProto
from verl.experimental.reward_loop.reward_manager.naive import NaiveRewardManager
from verl.trainer.ppo.reward import get_custom_reward_fn

from integrations.grading import NoVerdict
from integrations.verl_reward import rows


class Tokenizer:
    """One token a byte."""

    def decode(self, ids: Any, skip_special_tokens: bool = True) -> str:
        return bytes(ids.tolist()).decode()


async def main(problems: str, texts: dict[str, str]) -> dict[str, object]:
    path = {"path": "pkg://integrations.verl_reward", "name": "compute_score"}
    config = OmegaConf.create({"reward": {"custom_reward_function": path}})
    manager = NaiveRewardManager(config, Tokenizer(), get_custom_reward_fn(config))
    found: dict[str, object] = {}
    for row in rows(problems):
        name = row["extra_info"]["id"]
        ids = torch.tensor([list(texts[name].encode()) or [32]])
        data = DataProto.from_dict(
            tensors={"responses": ids, "attention_mask": torch.ones_like(ids)},
            non_tensors={field: [row[field]] for field in ("data_source", "reward_model", "extra_info")},
        )
        try:
            found[name] = (await manager.run_single(data))["reward_score"]
        except NoVerdict:
            found[name] = None
    return {"by_problem": found}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(sys.argv[1], json.loads(Path(sys.argv[2]).read_text())))))
