"""A bidirectional LSTM on CPUs, with the weights of ``nn.LSTM``, where torch's own is slow.

- In training below fp32 torch's is slower than in fp32, and keeps seven times as much for backward.
- For several sequences over wide states, where the time goes into reading the weights of the state
  at every step, torch's reads them two to four times as often as it takes.

Here the products of all steps with the weights of the input, and the gradients of all weights, are
one product each; only what recurs goes step by step.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from demucs_lightning.models.precision import linear

DIRECTIONS = ("", "_reverse")
WIDE = 1024  # of the state, from where on its weights don't stay in a cache


def reads_less(network: nn.LSTM, x: Tensor) -> bool:
    """Whether ``lstm`` takes less time for ``x (T, B, H)`` than ``network``, without gradients."""
    eager = not (torch.jit.is_tracing() or torch.compiler.is_compiling())
    return x.device.type == "cpu" and x.shape[1] > 1 and network.hidden_size >= WIDE and eager


def lstm(network: nn.LSTM, x: Tensor) -> Tensor:
    """``network(x)[0]`` of a bidirectional LSTM: ``x (T, B, H)`` to ``(T, B, 2H')``."""
    for layer in range(network.num_layers):
        given, weights = [], []
        for direction in DIRECTIONS:
            of_input, of_state, *biases = (
                getattr(network, f"{name}_l{layer}{direction}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
            )
            projected = linear(x, of_input, biases[0] + biases[1])
            given.append(projected.flip(0) if direction else projected)
            weights.append(of_state)
        if torch.is_grad_enabled():
            transposed = torch.stack([weight.T for weight in weights])
            ahead, back = _Recurrence.apply(torch.stack(given, dim=1), transposed).unbind(1)
        else:
            ahead, back = (_states(*each) for each in zip(given, weights, strict=True))
        x = torch.cat([ahead, back.flip(0)], dim=-1)
    return x


def _states(given: Tensor, weight: Tensor) -> Tensor:
    """``given (T, B, 4H)``, what the gates have from the input, and ``weight (4H, H)`` of the
    state, to the states ``(T, B, H)``; gates and cells in fp32.

    Below fp32 the fast product is weights times states, in fp32 it is states times weights. The
    gates are input, forget, cell, output.
    """
    lowered = weight.to(given.dtype).dtype != torch.float32
    weight = weight.to(given.dtype)
    axis = 0 if lowered else 1
    gates = (given.transpose(1, 2) if lowered else given).to(torch.float32, copy=True).contiguous()
    into, keep, new, out = gates.chunk(4, dim=axis + 1)
    both = gates.narrow(axis + 1, 0, 2 * weight.shape[1])
    states = torch.empty_like(new, dtype=given.dtype)
    state, cell = torch.zeros_like(states[0]), torch.zeros_like(new[0])
    for t, gate in enumerate(gates):
        gate += weight @ state if lowered else state @ weight.T
        both[t].sigmoid_()
        out[t].sigmoid_()
        cell.mul_(keep[t]).addcmul_(into[t], new[t].tanh_())
        states[t] = out[t].mul_(cell.tanh())
        state = states[t]
    return states.transpose(1, 2) if lowered else states


class _Recurrence(torch.autograd.Function):
    """``given (T, 2, B, 4H)``, what the gates have from the input, and ``weight (2, H, 4H)`` of the
    state, to the states ``(T, 2, B, H)``. The gates are input, forget, cell, output."""

    @staticmethod
    def forward(ctx: Any, given: Tensor, weight: Tensor) -> Tensor:
        gates, weight = given.float(), weight.float()
        width = weight.shape[1]
        cells = gates.new_zeros(len(gates) + 1, *gates.shape[1:3], width)
        states = torch.zeros_like(cells)
        for t, gate in enumerate(gates):
            torch.baddbmm(gate, states[t], weight, out=gate)
            into, keep, new, out = gate.chunk(4, dim=-1)
            gate[..., : 2 * width].sigmoid_()
            new.tanh_()
            out.sigmoid_()
            torch.mul(keep, cells[t], out=cells[t + 1]).addcmul_(into, new)
            torch.tanh(cells[t + 1], out=states[t + 1]).mul_(out)
        gates, cells, states = (each.to(given.dtype) for each in (gates, cells, states))
        ctx.save_for_backward(gates, cells, states, weight)
        return states[1:]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        gates, cells, states, weight = ctx.saved_tensors
        of_states, back = gradients[0].float(), weight.transpose(1, 2).contiguous()
        into, keep, new, out = (each.float() for each in gates.chunk(4, dim=-1))
        shown, before = cells[1:].float().tanh(), cells[:-1].float()
        # What each gate changes of the cell (the output gate: of the state), and the state's cell.
        slopes = [new * into * (1 - into), before * keep * (1 - keep), into * (1 - new * new)]
        of_cell, of_out = torch.stack(slopes, dim=-2), shown * out * (1 - out)
        of_shown = out * (1 - shown * shown)
        of_gates = torch.empty_like(gates, dtype=weight.dtype)
        first, last = of_gates.split([3 * len(back[0, 0]), len(back[0, 0])], dim=-1)
        first = first.unflatten(-1, (3, -1))
        state, cell = torch.zeros_like(before[0]), torch.zeros_like(before[0])
        for t in reversed(range(len(gates))):
            state += of_states[t]
            cell.addcmul_(state, of_shown[t])
            torch.mul(of_cell[t], cell.unsqueeze(-2), out=first[t])
            torch.mul(of_out[t], state, out=last[t])
            cell *= keep[t]
            torch.bmm(of_gates[t], back, out=state)
        of_gates = of_gates.to(gates.dtype)
        steps = of_gates.transpose(0, 1).flatten(1, 2)
        of_weight = states[:-1].permute(1, 3, 0, 2).flatten(2) @ steps
        return of_gates, of_weight.float()
