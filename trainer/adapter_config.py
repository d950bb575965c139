"""The options of a LoRA adapter."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pydantic import Field, model_validator

from environments.common.settings import Section


class AdapterConfig(Section):
    """A low-rank adapter (LoRA, arXiv 2106.09685) that is trained instead of the model's own weights."""

    rank: int = Field(0, ge=0, le=512, description="Rank of the adapter's matrices; 0: no adapter, all weights train.")
    alpha: float | None = Field(
        None, gt=0, description="The adapter's output is scaled by alpha / rank; empty: twice the rank."
    )
    targets: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="Last names of the linear layers in the model's blocks that get one.",
    )
    dropout: float = Field(0.0, description="Always 0: the ratio of two policies must not be random.")

    @property
    def scaling(self) -> float:
        """Factor of the adapter's output."""
        return (2 * self.rank if self.alpha is None else self.alpha) / max(self.rank, 1)

    def parameters(self, shapes: Mapping[str, Sequence[int]]) -> int:
        """Numbers in the adapter of a model whose files hold tensors of these names and shapes."""
        adapted = [
            shape
            for name, shape in shapes.items()
            if len(shape) == 2
            and name.split(".")[-2:-1]
            and name.split(".")[-2] in self.targets
            and name.endswith(".weight")
        ]
        return self.rank * sum(sum(shape) for shape in adapted)

    @model_validator(mode="after")
    def _fits_together(self) -> AdapterConfig:
        if self.dropout:
            raise ValueError(
                f"dropout {self.dropout:g}: dropped entries would make the ratio of two policies random; set dropout "
                "to 0, or leave it out"
            )
        for name in ("alpha", "targets"):
            value = getattr(self, name)
            if not self.rank and value != type(self).model_fields[name].default:
                raise ValueError(f"{name} {value} has no effect without an adapter: set rank, or leave {name} out")
        return self
