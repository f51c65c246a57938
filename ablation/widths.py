"""Widths: the factor on a network's channels at which it has as many parameters as another network."""

from bisect import bisect_left

from ablation.config import ConfigError, RunConfig, count_parameters

STEPS = 1000  # of a width of 1: about as many different networks as a ResNet has there
WIDEST = 16 * STEPS
TOLERANCE = 0.01


def parameters(config: RunConfig, width: float | None = None) -> int:
    """Number of parameters of a configuration's network, at its own or at another width.

    Raises:
        ValueError: there is no such network, since `reduction` does not divide its channels, say.
    """
    other = {} if width is None else {"width": width}
    return count_parameters(config.architecture() | {"weights": None} | other)


def widened(config: RunConfig, reference: RunConfig) -> RunConfig:
    """A configuration at the width, in thousandths, at which its parameters are the nearest to those of another.

    The width is found by bisection: parameters never fall where it grows. ResNets come within 1 % at any usual width,
    MobileNetV2, whose channels go in eights, from about a half.

    Raises:
        ConfigError: the nearest is more than 1 % off, or weights were asked for, which fit the usual width.
        ValueError: of `parameters`, at a width on the way.
    """
    wanted = parameters(reference)
    place = bisect_left(range(1, WIDEST), wanted, key=lambda step: parameters(config, step / STEPS))
    widths = [step / STEPS for step in (max(place, 1), place + 1)]
    width = min(widths, key=lambda width: abs(parameters(config, width) - wanted))
    ratio = parameters(config, width) / wanted
    if abs(ratio - 1) > TOLERANCE:
        raise ConfigError(
            f"no width comes within 1 % of {wanted}; the nearest, {width:g}, has {ratio:.3f} times as many"
        )
    return RunConfig(**config.model_dump() | {"width": width})
