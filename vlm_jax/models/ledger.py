"""A tally of matrix products: what the forward pass computes, and which gradients of each product a step needs.

A part of the model is written down in the order in which it runs, with a truth value in place of each activation: does
it depend on anything that trains? From that follows what a gradient costs. A product y = a b has two, of as many
FLOPs as itself: that of a where a depends on something trained, and that of b likewise; where b is a weight, where it
trains. So a product in a frozen part costs one more where anything before it trains, and none where nothing does.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator

Depends = bool
"""Whether an activation depends on a trained parameter, so that a gradient goes through it."""


class Ledger:
    """FLOPs by purpose: two for a multiplication and an addition. Biases, norms and softmax count as nothing.

    A layer with a kernel of 3 x 5, for two rows:

        ledger = Ledger(trained={"map/kernel"})
        y = ledger.linear("map", 2 * 3 * 5, False)                     the inputs are data: they depend on nothing
        (y, ledger.forward, ledger.input_gradients, ledger.weight_gradients) == (True, 60.0, 0.0, 60.0)
    """

    def __init__(self, trained: Collection[str] | None = None) -> None:
        """Args:
        trained: names of the parameters that train; None = all of them do.
        """
        self._trained = trained
        self._prefix, self._times = "", 1.0
        self.forward = self.input_gradients = self.weight_gradients = 0.0

    def linear(self, name: str, multiplications: float, x: Depends) -> Depends:
        """A product of activations with a weight, and a bias where there is one.

        Args:
            name: of the weight, or of the module that has it as "kernel".
            multiplications: of the product.
            x: of the activations.
        """
        flops = 2.0 * multiplications * self._times
        self.forward += flops
        self.input_gradients += flops * x
        self.weight_gradients += flops * self._trains(name, exactly=True)
        return self.learned(name, x)

    def product(self, multiplications: float, *operands: Depends) -> Depends:
        """A product of activations, or of one with a constant."""
        flops = 2.0 * multiplications * self._times
        self.forward += flops
        self.input_gradients += flops * sum(operands)
        return any(operands)

    def attention(self, pairs: float, width: int, queries: Depends, keys: Depends, values: Depends) -> Depends:
        """Scores and weighted sums of `pairs` of a query and a key, all heads together `width` wide."""
        scores = self.product(pairs * width, queries, keys)
        return self.product(pairs * width, scores, values)

    def mlp(
        self, name: str, tokens: float, width: int, hidden: int, x: Depends, *, gated: bool = False, outputs: int = 0
    ) -> Depends:
        """`layers.MLP`, or with `gated` `layers.GatedMLP`: width -> hidden -> outputs (0 = width)."""
        with self.within(name):
            y = self.linear("up", tokens * width * hidden, x)
            if gated:
                y |= self.linear("gate", tokens * width * hidden, x)
            return self.linear("down", tokens * hidden * (outputs or width), y)

    def learned(self, name: str, x: Depends = False) -> Depends:
        """What x becomes where a learned scale, vector or norm acts on it."""
        return x or self._trains(name, exactly=False)

    def layers(self, count: int, layer: Callable[[Depends], Depends], x: Depends) -> Depends:
        """`count` equal layers in a scan: what one of them needs, all of them compute."""
        if not count:
            return x
        with self.times(0):
            x |= layer(x)
        with self.times(count):
            return layer(x)

    @contextlib.contextmanager
    def within(self, name: str) -> Iterator[None]:
        """Names inside are those of a submodule."""
        before = self._prefix
        self._prefix = f"{before}{name}/"
        yield
        self._prefix = before

    @contextlib.contextmanager
    def times(self, count: float) -> Iterator[None]:
        """What is written down inside counts so many times."""
        before = self._times
        self._times = before * count
        yield
        self._times = before

    def _trains(self, name: str, *, exactly: bool) -> bool:
        if self._trained is None:
            return True
        full = self._prefix + name
        if exactly:
            return full in self._trained or f"{full}/kernel" in self._trained
        return full in self._trained or any(other.startswith(f"{full}/") for other in self._trained)
