"""DeepSpeed ZeRO stages 1, 2 and 3 (Rajbhandari et al. 2020): sharded optimizer state, gradients, parameters."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.tensor import DTensor, Shard

from vitscale.models import Backbone
from vitscale.parallel.engine import Engine, images_in_bf16
from vitscale.parallel.state import Fill, check_names, fill_rests_, optimizer_keys
from vitscale.parallel.update import Read, Update


class ZeroEngine(Engine):
    """DeepSpeed reduces, clips and updates in one call, and its forward goes through its own object.

    Its state enters and leaves through DeepSpeed's tensor-fragment calls, parameter by parameter, under the names that every other
    engine uses.  So one checkpoint serves all stages, engines and world sizes, and no pickle of DeepSpeed's is ever read.
    """

    _engine: Any

    @property
    def is_forward_local(self) -> bool:
        return self.parallel.zero_stage < 3 or self.world.size == 1

    def adopt(self, model: Backbone, optimizer: torch.optim.Optimizer) -> None:
        # DeepSpeed takes its device from here, also for one process and under srun, which do not set it
        os.environ["LOCAL_RANK"] = str(self.world.device.index or 0 if self.world.device.type == "cuda" else self.world.local_rank)
        if self.world.device.type == "cpu":
            os.environ["DS_ACCELERATOR"] = "cpu"
        deepspeed = _import_deepspeed()
        bf16 = self.parallel.precision == "bf16"
        # DeepSpeed makes its fp32 masters from the bf16 copy of the weights; the exact ones are put back below
        exact = {name: p.detach().clone() for name, p in model.named_parameters()} if bf16 else {}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()} if bf16 else {}
        self._engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=self._config(), dist_init_required=False)
        self.model, self.optimizer = self._engine.module, self._engine.optimizer
        # so that DTensors made from host copies can be saved without touching a GPU
        self._host_mesh: DeviceMesh = init_device_mesh("cpu", (self.world.size,), mesh_dim_names=("shard",))
        for name, parameter in self.model.named_parameters():
            if exact:
                self._set(parameter, exact[name], None)
        for name, buffer in buffers.items():    # it casts tables of positions too, which are exact and small
            module, _, leaf = name.rpartition(".")
            self.model.get_submodule(module).register_buffer(leaf, buffer, persistent=False)
        self.weights_changed()

    def weights_changed(self) -> None:
        from deepspeed.utils import safe_get_full_fp32_param

        if self.parallel.precision == "bf16":
            fill_rests_(self.model, safe_get_full_fp32_param)

    def _config(self) -> dict[str, Any]:
        stage = self.parallel.zero_stage
        zero: dict[str, Any] = {"stage": stage, "contiguous_gradients": True, "overlap_comm": self.world.device.type == "cuda"}
        if self.parallel.zero_offload:
            zero["offload_optimizer"] = {"device": "cpu", "pin_memory": self.world.device.type == "cuda"}
        config: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": self.work.micro_batch,
            "gradient_accumulation_steps": self.work.micro_steps,
            "zero_optimization": zero,
            "gradient_clipping": self.work.clip_norm or 0.0,
            "zero_allow_untested_optimizer": True,      # torch's AdamW: DeepSpeed's own would be compiled at first use
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 10**9,
            "wall_clock_breakdown": False,
        }
        if self.parallel.precision == "bf16":
            config["bf16"] = {"enabled": True, "check_grad_overflow": True}
            config["data_types"] = {"grad_accum_dtype": "fp32"}
            config["communication_data_type"] = "fp32"
        return config

    @contextlib.contextmanager
    def micro_step(self, last: bool) -> Iterator[None]:
        self._engine.set_gradient_accumulation_boundary(last)
        yield

    def forward(self, images: Tensor, keep: Tensor | None, *more: Tensor) -> Any:
        if self.parallel.precision == "bf16":       # DeepSpeed casts the weights, not what goes in
            images, *more = images_in_bf16(images, *more)      # type: ignore[assignment]
        return self._engine(images, keep, *more)

    def backward(self, loss: Tensor) -> None:
        self._engine.backward(loss, scale_wrt_gas=False)    # the loss already has the global batch as its denominator

    def step(self, read: Read = float) -> Update:
        self._engine.step()
        applied = bool(self._engine.was_step_applied())
        norm = self._engine.get_global_grad_norm()
        self.weights_changed()
        return Update(read(torch.as_tensor(float("nan") if norm is None else norm)), applied)

    def tensors(self) -> dict[str, Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        state: dict[str, Tensor] = {}
        self._link_optimizer_state()
        keys, counters = self._state_keys()
        for name, parameter in self.model.named_parameters():
            state[f"model.{name}"] = self._sharded(safe_get_full_fp32_param(parameter), parameter)
            for key in keys:
                state[f"optim.{name}.{key}"] = self._sharded(safe_get_full_optimizer_state(parameter, key), parameter)
            for key, value in counters.items():
                state[f"optim.{name}.{key}"] = value
        return state

    def restore(self, shapes: Mapping[str, torch.Size], fill: Fill) -> None:
        parameters = dict(self.model.named_parameters())
        full_shapes = {name: _full_shape(parameter) for name, parameter in parameters.items()}
        check_names({name: torch.empty(shape, device="meta") for name, shape in full_shapes.items()}, shapes)
        targets: dict[str, Tensor] = {}
        for name in shapes:
            if name.startswith(("model.", "optim.")):
                shape = shapes[name]
                targets[name] = self._empty_shard(shape) if len(shape) else torch.zeros((), dtype=torch.float32)
        fill(targets)
        for name, parameter in parameters.items():
            self._set(parameter, self._whole(targets[f"model.{name}"]), None)
        self._allocate_optimizer_state({key: shapes[f"optim.{name}.{key}"] for name, key in optimizer_keys(shapes)})
        counters: dict[str, Tensor] = {}
        for name, key in optimizer_keys(shapes):
            value = targets[f"optim.{name}.{key}"]
            if isinstance(value, DTensor):
                self._set(parameters[name], self._whole(value), key)
            else:
                counters[key] = value
        for state in self._base.state.values():
            for key, value in counters.items():
                state[key].copy_(value)     # in place: each group counts for itself
        # the weights that compute (bf16, or gathered) follow the fp32 masters at the next update; until then they must agree with them
        self._refresh_compute_weights({name: targets[f"model.{name}"] for name in parameters})
        self.weights_changed()

    @property
    def _base(self) -> torch.optim.Optimizer:
        """The torch optimizer inside DeepSpeed's."""
        return self._engine.optimizer.optimizer

    def _link_optimizer_state(self) -> None:
        """Let DeepSpeed know each parameter's part of the flat optimizer state (stages 1 and 2).

        It does so itself in the first step, but once the first parameter group is updated, when the state of the others does not
        exist yet (deepspeed 0.19.8).
        """
        if self.parallel.zero_stage < 3:
            from deepspeed.utils import lazy_init_hp_params_optimizer_state

            inner = self._engine.optimizer
            groups = inner.bf16_groups if self._is_bf16_stage_1 else inner.bit16_groups
            for group, flat in zip(groups, self._flat_masters, strict=True):
                lazy_init_hp_params_optimizer_state(group, flat, self._base.state)

    @property
    def _is_bf16_stage_1(self) -> bool:
        """DeepSpeed takes another optimizer class for bf16 with fp32 gradients in stage 1, with other names for the same things."""
        return hasattr(self._engine.optimizer, "fp32_groups_flat_partition")

    @property
    def _flat_masters(self) -> list[Tensor]:
        """This rank's fp32 weights, one flat tensor per parameter group."""
        inner = self._engine.optimizer
        if self.parallel.zero_stage == 3:
            return inner.fp32_partitioned_groups_flat
        return inner.fp32_groups_flat_partition if self._is_bf16_stage_1 else inner.single_partition_of_fp32_groups

    def _allocate_optimizer_state(self, keys: Mapping[str, torch.Size]) -> None:
        """Make the state that the optimizer would make in its first step; `keys` with one shape of each, () for a counter."""
        for flat in self._flat_masters:
            for key, shape in keys.items():
                if key not in self._base.state[flat]:
                    self._base.state[flat][key] = torch.zeros_like(flat) if len(shape) else torch.zeros((), device=flat.device)
        self._link_optimizer_state()

    def _state_keys(self) -> tuple[list[str], dict[str, Tensor]]:
        """Names of the optimizer's per-element state, and its counters (AdamW: exp_avg and exp_avg_sq; step)."""
        keys: list[str] = []
        counters: dict[str, Tensor] = {}
        for state in self._base.state.values():
            for key, value in state.items():
                if torch.is_tensor(value) and value.dim() > 0:
                    keys.append(key) if key not in keys else None
                else:
                    counters[key] = torch.as_tensor(value, dtype=torch.float32, device="cpu").clone()
        return keys, counters

    def _sharded(self, full: Tensor, parameter: nn.Parameter) -> DTensor:
        """This rank's rows of a full value, on the host."""
        full = full.detach().view(_full_shape(parameter))
        parts = full.chunk(self.world.size)
        mine = parts[self.world.rank] if self.world.rank < len(parts) else full[:0]
        return DTensor.from_local(mine.to("cpu", copy=True), self._host_mesh, [Shard(0)], run_check=False,
                                  shape=full.shape, stride=full.stride())

    def _empty_shard(self, shape: torch.Size) -> DTensor:
        from torch.distributed.tensor import zeros

        return zeros(*shape, dtype=torch.float32, device_mesh=self._host_mesh, placements=[Shard(0)])

    def _whole(self, value: Tensor) -> Tensor:
        assert isinstance(value, DTensor)
        return value.full_tensor().to(self.world.device)

    def _set(self, parameter: nn.Parameter, full: Tensor, key: str | None) -> None:
        """Write a full fp32 value (key None) or optimizer state into this rank's fragment."""
        from deepspeed.utils import (
            safe_get_local_fp32_param,
            safe_get_local_optimizer_state,
            safe_set_full_fp32_param,
            safe_set_full_optimizer_state,
            safe_set_local_fp32_param,
            safe_set_local_optimizer_state,
        )

        if not hasattr(parameter, "ds_id"):     # stages 1 and 2
            if key is None:
                safe_set_full_fp32_param(parameter, full)
            else:
                safe_set_full_optimizer_state(parameter, full, key)
            return
        # stage 3 pads each parameter to a multiple of the world size, which its own full setter does not
        old = safe_get_local_fp32_param(parameter) if key is None else safe_get_local_optimizer_state(parameter, key)
        size = old.numel()
        part = torch.zeros(size, dtype=torch.float32, device=full.device)
        mine = full.flatten()[size * self.world.rank: size * (self.world.rank + 1)]
        part[: mine.numel()] = mine
        if key is None:
            safe_set_local_fp32_param(parameter, part)
        else:
            safe_set_local_optimizer_state(parameter, part, key)

    def _refresh_compute_weights(self, values: Mapping[str, Tensor]) -> None:
        import deepspeed

        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                full = self._whole(values[name])
                if hasattr(parameter, "ds_id"):
                    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
                        if self.world.is_first:
                            parameter.data.copy_(full)
                else:
                    parameter.data.copy_(full)


def _full_shape(parameter: nn.Parameter) -> torch.Size:
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def _import_deepspeed() -> Any:
    """DeepSpeed, quiet and with its compiled shared-memory operator off (it would be compiled at first use: half a minute)."""
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    __compatible_ops__["deepspeed_shm_comm"] = False
    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    return deepspeed
