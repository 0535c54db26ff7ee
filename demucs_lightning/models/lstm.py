"""A bidirectional LSTM for training below fp32 on CPUs, with the weights of ``nn.LSTM``.

torch's own is slower in bf16 than in fp32 there, and keeps seven times as much for backward. Here
the products of all steps with the weights of the input, and the gradients of all weights, are one
product each; only what recurs goes step by step, in fp32.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from demucs_lightning.models.precision import linear

DIRECTIONS = ("", "_reverse")


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
            weights.append(of_state.T)
        ahead, back = _Recurrence.apply(torch.stack(given, dim=1), torch.stack(weights)).unbind(1)
        x = torch.cat([ahead, back.flip(0)], dim=-1)
    return x


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
