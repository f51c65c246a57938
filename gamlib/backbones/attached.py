"""The modules that put an attention block behind another module."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Attended(nn.Module):
    """A module and the attention block behind it, which stand for the module alone.

    Takes what `inner` takes and puts out attention(inner(...)). An attribute that it does not have itself is read from
    `inner`. The keys of its `state_dict` are those of `inner`, and the block's under `attention.`, so that weights of
    the network without attention fit; keys under `inner.` are loaded, too. The names that `named_modules` and
    `named_parameters` give do have `inner` in them.

    It is a module and no forward hook, since `SyncBatchNorm.convert_sync_batchnorm` drops those of a BatchNorm.
    """

    def __init__(self, inner: nn.Module, attention: nn.Module) -> None:
        super().__init__()
        self.inner, self.attention, self.training = inner, attention, inner.training
        self.register_state_dict_post_hook(_save)
        self.register_load_state_dict_pre_hook(_load)
        self.register_load_state_dict_post_hook(_report)

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """What the block makes of the output of `inner`."""
        output: Tensor = self.attention(self.inner(*args, **kwargs))
        return output

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("__"):  # of pickle and copy, which must have this module and not `inner`
                raise
            return getattr(super().__getattr__("inner"), name)


class ReZero(nn.Module):
    """A block that begins as the identity: x + share * (block(x) - x). [N, C, H, W] -> [N, C, H, W].

    `share`, one learnable number, begins at zero: ReZero (Bachlechner et al. 2020, https://arxiv.org/abs/2003.04887).
    In the first step only it has a gradient other than zero; from the second on all learns.
    """

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block, self.share = block, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        """A map, changed by the block as far as the share says."""
        return x + self.share * (self.block(x) - x)


class _Loading(NamedTuple):
    """What is known while a state dict is loaded into an `Attended`: its prefix, and the lists of what does not fit."""

    prefix: str
    problems: tuple[list[str], ...]


def _save(_: nn.Module, state: dict[str, Any], prefix: str, __: Any) -> None:
    """Take `inner.` out of the keys; they keep their order."""
    for key in [key for key in state if key.startswith(prefix)]:
        state[prefix + key.removeprefix(prefix).removeprefix("inner.")] = state.pop(key)


def _load(module: nn.Module, state: dict[str, Any], prefix: str, _: Any, __: bool, *problems: list[str]) -> None:
    """Put `inner.` into the keys, unless they come from a network whose keys had it."""
    own = [key for key in state if key.startswith(prefix) and not key.startswith(f"{prefix}attention.")]
    names = {key.removeprefix(prefix) for key in own}
    inner: Any = module.inner
    if not all(name.startswith("inner.") for name in names) or names <= inner.state_dict().keys():
        for key in own:
            state[f"{prefix}inner.{key.removeprefix(prefix)}"] = state.pop(key)
    module._loading = _Loading(prefix, problems)  # type: ignore[assignment]


def _report(module: nn.Module, _: Any) -> None:
    """Name what is missing, left over or of another size by the keys that are saved."""
    loading: Any = vars(module).pop("_loading")
    for found in loading.problems:
        found[:] = [line.replace(f"{loading.prefix}inner.", loading.prefix) for line in found]
