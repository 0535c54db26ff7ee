"""What training minimises: the distance of estimates from stems, and the singular value penalty.

The penalty is that of Hybrid Demucs (Défossez 2021, section 3.3): the largest singular value,
squared, of every large weight, estimated with the randomised iteration of Halko, Martinsson & Tropp
(2011).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor, nn

PARAMETERS_PER_MB = 2**18  # of 4 bytes


class SeparationLoss(nn.Module):
    """Distance of estimates from stems, weighted by source: `(loss scalar, per_source (S,))`.

    `kind` is "l1" or "mse"; `weights` holds a number for each source (None: all alike).
    `per_source` is the mean absolute error, or for "mse" the root mean square error of an example,
    averaged over the batch. Differs from demucs 4 in that its "mse" sums over the batch where this
    is the mean, so that neither the batch nor the number of GPUs scales the gradient; "l1" is the
    same.

    Raises ValueError if the number of weights is not the number of sources.
    """

    weights: Tensor

    def __init__(self, kind: str = "l1", weights: Sequence[float] | None = None):
        super().__init__()
        if kind not in ("l1", "mse"):
            raise ValueError(f"optim.loss is {kind!r}: it must be l1 or mse.")
        values = torch.tensor([1.0] if weights is None else list(weights))
        if not values.isfinite().all() or (values < 0).any() or not values.sum() > 0:
            raise ValueError(f"weights is {weights}: no weight may be negative, and one positive.")
        self.kind = kind
        self.given = weights is not None
        self.register_buffer("weights", values, persistent=False)

    def forward(self, estimates: Tensor, stems: Tensor) -> tuple[Tensor, Tensor]:
        """Compare two tensors (B, S, C, T)."""
        assert estimates.shape == stems.shape, (estimates.shape, stems.shape)
        weights = self._weights(stems)
        difference = estimates - stems
        if self.kind == "l1":
            distance = per_source = difference.abs().mean(dim=(2, 3)).mean(dim=0)
        else:
            squares = difference.square().mean(dim=(2, 3))
            distance, per_source = squares.mean(dim=0), squares.detach().sqrt().mean(dim=0)
        return (distance * weights).sum() / weights.sum(), per_source.detach()

    def _weights(self, stems: Tensor) -> Tensor:
        sources = stems.shape[1]
        if self.given and len(self.weights) != sources:
            raise ValueError(
                f"weights has {len(self.weights)} values: it needs one a source, {sources}."
            )
        return self.weights.to(stems).expand(sources)


class SVDPenalty:
    """Sum of the squared largest singular values of a model's weights; `penalty` is its factor.

    Arguments are the settings `svd.*`. Weights of at least `min_size` MB count; of more than two
    dimensions, the first is set against all others, and for a transposed convolution the second if
    `convtr`. With `conv_only`, matrices (as of an LSTM) don't count. A value is estimated from
    `dim` random directions after `niters` iterations, or with `powm` by the power method on the
    Gram matrix from `bs` starts. With probability `proba` a step has the penalty, divided by
    `proba` then.
    """

    def __init__(  # noqa: PLR0913
        self,
        penalty: float = 0.0,
        *,
        min_size: float = 0.1,
        dim: int = 1,
        niters: int = 2,
        powm: bool = False,
        proba: float = 1.0,
        conv_only: bool = False,
        convtr: bool = True,
        bs: int = 1,
    ):
        if not penalty >= 0:
            raise ValueError(f"svd.penalty is {penalty}: it must be 0 or more.")
        if not 0 < proba <= 1:
            raise ValueError(f"svd.proba is {proba}: it must be above 0 and at most 1.")
        for name, value in [("dim", dim), ("niters", niters), ("bs", bs)]:
            if value < 1:
                raise ValueError(f"svd.{name} is {value}: it must be at least 1.")
        self.penalty, self.proba, self.min_size = penalty, proba, min_size
        self.dim, self.niters, self.powm, self.bs = dim, niters, powm, bs
        self.conv_only, self.convtr = conv_only, convtr

    def __call__(self, model: nn.Module, generator: Generator) -> Tensor:
        """The estimate (0 on a step without it), differentiable, not multiplied by `penalty`.

        `generator` must be seeded alike on every rank: all of them skip the same steps, else none
        is faster. On the CPU, it keeps the host from waiting for a GPU: what is drawn there decides
        whether a step has the penalty, and seeds the draws on the device of the weights. With `dim`
        above 1 (and not `powm`) the host waits for the eigenvalues of a GPU all the same.
        """
        if self.proba < 1:
            draw = torch.rand((), generator=generator, device=generator.device)
            if draw.item() > self.proba:
                return _zero(model)
        estimate = self._power_method if self.powm else self._low_rank
        zero = _zero(model)
        generator = _on(zero.device, generator)
        with torch.autocast(zero.device.type, enabled=False):  # QR has no half precision
            total = sum((estimate(m, generator) for m in self.matrices(model)), zero)
        return total / self.proba

    @torch.no_grad()
    def exact(self, model: nn.Module) -> Tensor:
        """The value itself, slowly: for validation. Always computed, whatever `proba`."""
        values = (torch.linalg.matrix_norm(m, 2).square() for m in self.matrices(model))
        return sum(values, _zero(model))

    def matrices(self, model: nn.Module) -> Iterator[Tensor]:
        """The weights that count, as matrices."""
        for module in model.modules():
            transposed = isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d)
            for weight in module.parameters(recurse=False):
                lacks = weight.dim() < 2 or (weight.dim() == 2 and self.conv_only)
                if lacks or weight.numel() / PARAMETERS_PER_MB < self.min_size:
                    continue
                swap = self.convtr and transposed and weight.dim() > 2
                yield (weight.transpose(0, 1) if swap else weight).flatten(1)

    def _low_rank(self, matrix: Tensor, generator: Generator) -> Tensor:
        """Algorithms 4.4 and 5.1 of Halko et al.: a basis of the range, and what is exact in it."""
        tall = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.mT
        basis = _scaled if self.dim == 1 else _orthonormal
        columns = tall @ _gaussian(tall.shape[1], self.dim, matrix, generator)
        for _ in range(self.niters):
            columns = tall @ basis(tall.mT @ basis(columns))
        if self.dim == 1:  # the singular value of a row is its norm
            squares = columns.square().sum().clamp(min=torch.finfo(matrix.dtype).tiny)
            return (columns.mT @ tall).square().sum() / squares
        wide = _orthonormal(columns).mT @ tall
        return torch.linalg.eigvalsh(wide @ wide.mT)[-1]

    def _power_method(self, matrix: Tensor, generator: Generator) -> Tensor:
        wide = matrix.shape[0] < matrix.shape[1]
        gram = matrix @ matrix.mT if wide else matrix.mT @ matrix
        vectors = _gaussian(len(gram), self.bs, matrix, generator)
        norms = vectors.new_ones(1, self.bs)
        for _ in range(self.niters):
            vectors = gram @ vectors
            norms = vectors.norm(dim=0, keepdim=True)
            vectors = vectors / (norms + 1e-10)
        return norms.mean()


def _on(device: torch.device, generator: Generator) -> Generator:
    """`generator`, or where it is for another device, one for this that it seeds."""
    if generator.device.type == device.type:
        return generator
    seed = torch.randint(2**62, (), generator=generator, device=generator.device)
    return Generator(device).manual_seed(int(seed))


def _orthonormal(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def _scaled(column: Tensor) -> Tensor:
    """A column at length 1, which keeps it in the range of numbers: what is made of it doesn't
    depend on its length, so the gradient need not go through that."""
    return column / column.detach().norm().clamp_(min=torch.finfo(column.dtype).tiny)


def _gaussian(rows: int, columns: int, like: Tensor, generator: Generator) -> Tensor:
    return torch.randn(rows, columns, generator=generator, device=like.device, dtype=like.dtype)


def _zero(model: nn.Module) -> Tensor:
    return next(model.parameters()).new_zeros(())
