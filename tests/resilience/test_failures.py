"""Errors are sorted by whether another attempt may help, over what CUDA, NCCL, gloo, torch and the system really say."""

import errno
import itertools
import json
import os
from pathlib import Path

import pytest

from vitscale.checkpoint.room import Unwritten
from vitscale.errors import ClusterError, DataError, RecipeError, StorageError, UserError
from vitscale.metrics.system import CAUSES
from vitscale.resilience.failures import classify, signature
from vitscale.resilience.lasterror import most_telling, note_error, tell, tell_for_job, tell_if_nobody_did
from vitscale.resilience.outcome import read_outcome, write_outcome
from vitscale.runfolder import BEGUN, marks, write_object

# cause, again -> what is said.  The words are those of the CUDA runtime (cudaGetErrorString), NCCL (ncclGetErrorString), gloo and torch.
CUDA = {
    ("device", "yes"): [
        "uncorrectable ECC error encountered", "all CUDA-capable devices are busy or unavailable", "hardware stack error",
        "uncorrectable NVLink error detected during the execution", "Invalid access of peer GPU memory over nvlink or a hardware error",
        "unknown error", "no CUDA-capable device is detected", "system not yet initialized", "driver shutting down"],
    ("device", "once"): [
        "an illegal memory access was encountered", "device-side assert triggered", "unspecified launch failure", "misaligned address",
        "the launch timed out and was terminated", "an illegal instruction was encountered", "invalid program counter",
        "operation not supported on global/shared address space"],
    ("memory", "once"): ["out of memory"],
    ("crash", "no"): [
        "no kernel image is available for execution on the device", "invalid device ordinal", "invalid device function",
        "CUDA driver version is insufficient for CUDA runtime version", "the provided PTX was compiled with an unsupported toolchain."],
}
NAMES = {
    ("device", "yes"): ["ECC_UNCORRECTABLE", "NVLINK_UNCORRECTABLE", "DEVICE_UNAVAILABLE", "HARDWARE_STACK_ERROR", "UNKNOWN", "NO_DEVICE",
                        "SYSTEM_NOT_READY", "CONTAINED"],
    ("device", "once"): ["ILLEGAL_ADDRESS", "LAUNCH_FAILED", "LAUNCH_TIMEOUT", "ASSERT", "MISALIGNED_ADDRESS", "ILLEGAL_INSTRUCTION",
                         "INVALID_PC"],
    ("memory", "once"): ["OUT_OF_MEMORY"],
    ("crash", "no"): ["NO_BINARY_FOR_GPU", "INVALID_PTX", "INVALID_DEVICE"],
}
TAIL = ("\nCUDA kernel errors might be asynchronously reported at some other API call, so the stacktrace below might be incorrect.\n"
        "For debugging consider passing CUDA_LAUNCH_BLOCKING=1.\nCompile with `TORCH_USE_CUDA_DSA` to enable device-side assertions.\n")
AROUND = ["CUDA error: {}", "CUDA error: {}" + TAIL, "cuda runtime error (39) : {} at /pytorch/aten/src/THC/THCCachingHostAllocator.cpp:3",
          "CUDA driver error: {}", "Triton Error [CUDA]: {}",
          "NCCL error in: ../torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp:1691, unhandled cuda error (run with NCCL_DEBUG=INFO), NCCL "
          "version 2.21.5\nncclUnhandledCudaError: Call to CUDA function failed.\nLast error:\nCuda failure '{}'"]
OTHER = {
    ("device", "yes"): [
        "NVRM: Xid (PCI:0000:c6:00): 79, pid=1101234, name=python, GPU has fallen off the bus.", "Xid 48", "Xid 74, NVLink", "XID: 95",
        "NVRM: Xid (0000:03:00): 63, Row Remapper", "Xid 64", "Xid error 94", "Xid (PCI:0000:17:00): 119, GSP RPC timeout",
        "Unable to determine the device handle for GPU 0000:01:00.0: GPU is lost.  Reboot the system to recover this GPU",
        "NCCL error in: x.cpp:33, unhandled cuda error, NCCL version 2.7.8\nncclUnhandledCudaError: Call to CUDA function failed."],
    ("device", "once"): [
        "Xid 13, Graphics Engine Exception", "NVRM: Xid (PCI:0000:01:00): 31, Ch 00000010, MMU Fault", "Xid 43",
        "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR", "cuFFT error: CUFFT_EXEC_FAILED",
        "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, opa, opb, m, n, k)`",
        "CUDA error: CUBLAS_STATUS_INTERNAL_ERROR when calling `cublasGemmEx`", "HIP error: an illegal memory access was encountered"],
    ("memory", "once"): [
        "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 79.15 GiB of which 10.00 MiB is free.",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "[enforce fail at alloc_cpu.cpp:75] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 7 bytes.",
        "DataLoader worker (pid 123) is killed by signal: Bus error. It is possible that workers are out of shared memory.",
        "HIP out of memory. Tried to allocate 2.00 GiB", "std::bad_alloc"],
    ("network", "yes"): [
        "NCCL error in: ../ProcessGroupNCCL.cpp:1691, unhandled system error (run with NCCL_DEBUG=INFO for details), NCCL version 2.18.5\n"
        "ncclSystemError: System call (e.g. socket, malloc) or external library call failed or device error.",
        "NCCL Error 2: unhandled system error", "NCCL Error 3: internal error - please report this issue to the NCCL developers",
        "ncclInternalError: Internal check failed.", "NCCL Error 6: remote process exited or there was a network error",
        "ncclRemoteError: A call failed possibly due to a network error or a remote process exiting prematurely.",
        "NCCL communicator was aborted on rank 1.",
        "[Rank 1] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=6057, OpType=ALLREDUCE, Timeout(ms)=600000) ran for 600101 "
        "milliseconds before timing out.",
        "[../third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer [10.0.0.1]:43240",
        "[/gloo/transport/tcp/buffer.cc:76] Read timeout [127.0.0.1]:33", "Gloo connectFullMesh failed with [/pair.cc:144] no error",
        "Connection reset by peer", "Broken pipe", "Socket Timeout", "connect() failed: Connection refused", "No route to host",
        "The server socket has failed to listen on any local network address", "Timed out waiting 1800000ms for recv operation",
        "transport/net_ib.cc:93 NCCL WARN NET/IB : Got completion with error 12, vendor err 129", "ibv_reg_mr_iova2 failed"],
    ("disk", "yes"): ["[Errno 5] Input/output error: 'x'", "Stale file handle", "Read-only file system", "unexpected pos 64 vs 0"],
    ("crash", "no"): [
        "mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)", "The size of tensor a (3) must match the size of tensor b (4)",
        "shape '[2, 3]' is invalid for input of size 5", "Expected all tensors to be on the same device, but found cuda:0 and cpu!",
        "expected scalar type Float but found BFloat16", "Trying to backward through the graph a second time",
        "one of the variables needed for gradient computation has been modified by an inplace operation",
        "Sizes of tensors must match except in dimension 1.", "\"addmm_impl_cpu_\" not implemented for 'Half'",
        "element 0 of tensors does not require grad and does not have a grad_fn",
        "NCCL error: invalid usage (run with NCCL_DEBUG=WARN for details)", "ncclInvalidArgument: An argument has an invalid value."],
    ("crash", "once"): ["", "the moon is full", "Inplace update went wrong"],
}


def corpus() -> list[tuple[str, str, str]]:
    found = [(cause, again, around.format(words)) for (cause, again), said in CUDA.items()
             for words, around in itertools.product(said, AROUND)]
    for (cause, again), names in NAMES.items():
        for name in names:
            runtime = "cudaError" + name.title().replace("_", "").replace("Ecc", "ECC")
            found += [(cause, again, text) for text in (
                f"CUDA_ERROR_{name}", runtime, f"CUDA error: {runtime}", f"cuLaunchKernel failed with CUDA_ERROR_{name} (719)",
                f"NCCL WARN Cuda failure: CUDA_ERROR_{name}")]
    return found + [(cause, again, text) for (cause, again), texts in OTHER.items() for text in texts]


@pytest.mark.parametrize(("cause", "again"), sorted({(cause, again) for cause, again, _ in corpus()}))
def test_every_error_is_sorted(cause: str, again: str) -> None:
    wrong = {text: (kind.cause, kind.again) for wanted, often, text in corpus() if (wanted, often) == (cause, again)
             and ((kind := classify(text)).cause, kind.again) != (cause, again)}
    assert wrong == {}
    assert cause in CAUSES
    assert len(corpus()) > 200


BUGS = [TypeError("CUDA error: x"), KeyError("out of memory"), AssertionError(), IndexError("list index out of range"),
        AttributeError("x"), ValueError("timeout"), NotImplementedError(), ZeroDivisionError(), RecursionError(), ImportError("nccl")]


@pytest.mark.parametrize("error", BUGS, ids=lambda error: type(error).__name__)
def test_a_bug_is_one_whatever_its_words(error: Exception, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    found = note_error(tmp_path, error, rank=0, size=1, node="n1", attempt=1)
    assert (found.code, found.cause) == (3, "crash")


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EROFS, errno.ETIMEDOUT, errno.ECONNRESET, errno.ENOSPC, errno.EMFILE])
def test_an_error_of_the_system_is_worth_another_attempt(number: int, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    found = note_error(tmp_path, OSError(number, os.strerror(number)), rank=0, size=1, node="n1", attempt=1)
    assert found.code == 75
    assert found.text == os.strerror(number)


@pytest.mark.parametrize("error", [
    RecipeError("data.group: 5 is no divisor of 16"), DataError("cats-0003.tar: is damaged"), Unwritten("no space is left"),
    ClusterError("torch sees no GPU here"), StorageError(errno.ESTALE, "Stale handle", "runs/a")], ids=lambda error: type(error).__name__)
def test_what_is_said_to_users_is_the_same_in_the_outcome_and_on_the_console(error: UserError, folder: Path) -> None:
    note_error(folder, error, rank=1, size=2, node="n2", attempt=1)     # all have found it together, and rank 0 alone has a console
    failure = most_telling(folder, 1, note_error(folder, error, rank=0, size=2, node="n1", attempt=1))
    assert failure is not None
    tell(folder, failure)
    assert read_outcome(folder)["reason"] == str(error)


def go(folder: Path, text: str, attempt: int, step: int = 7, rank: int = 1, **more: bool) -> int:
    error = note_error(folder, RuntimeError(text), rank=rank, size=2, node=f"n{rank}", attempt=attempt, step=step, **more)
    tell(folder, error)
    return error.code


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir()
    return tmp_path


@pytest.mark.parametrize(("text", "codes"), [
    ("CUDA error: uncorrectable ECC error encountered", [75, 75, 75]),      # a person, or the count of attempts without progress, ends it
    ("NCCL Error 2: unhandled system error", [75, 75, 75]),
    ("CUDA error: device-side assert triggered", [75, 3]), ("CUDA out of memory. Tried to allocate 20.00 MiB", [75, 3]),
    ("the moon is full", [75, 3]), ("mat1 and mat2 shapes cannot be multiplied", [3])])
def test_what_repeats_at_the_same_step_is_a_bug(folder: Path, text: str, codes: list[int]) -> None:
    assert [go(folder, text, attempt) for attempt in range(1, len(codes) + 1)] == codes
    if codes == [75, 3]:
        assert "the same error came at step 7 before" in read_outcome(folder)["reason"]


def test_at_another_step_or_with_other_words_it_is_none(folder: Path) -> None:
    assert go(folder, "CUDA error: device-side assert triggered", 1, step=7) == 75
    assert go(folder, "CUDA error: device-side assert triggered", 2, step=9) == 75
    assert go(folder, "CUDA error: misaligned address", 3, step=9) == 75
    assert go(folder, "CUDA error: misaligned address at 0x7f21, pid 77", 4, step=9) == 75
    assert go(folder, "CUDA error: misaligned address at 0x8a00, pid 12", 5, step=9) == 3       # numbers differ from time to time
    assert signature("A", "at 0x12 pid 3") == signature("A", "at 0xff pid 44")


def test_what_another_rank_wrote_before_counts_too(folder: Path) -> None:
    """The run was moved: the same step fails on rank 0 of other nodes; and the outcome in between was somebody's signal."""
    assert go(folder, "the moon is full", 1, rank=1) == 75
    write_outcome(folder, 75, "asked to stop", cause="signal", attempt=2)
    assert go(folder, "the moon is full", 3, rank=0) == 3


def test_the_failure_is_told_and_not_its_echo(folder: Path) -> None:
    echo = note_error(folder, RuntimeError("Connection closed by peer [10.0.0.1]:4"), rank=0, size=3, node="n0", attempt=4, step=7)
    assert echo.is_echo
    assert (echo.code, echo.cause) == (75, None)
    assert most_telling(folder, 4, echo) == echo
    later = note_error(folder, RuntimeError("the moon is full"), rank=2, size=3, node="n2", attempt=3)      # of another attempt
    assert most_telling(folder, 4, echo) == echo != later
    failure = note_error(folder, RuntimeError("CUDA error: uncorrectable ECC error encountered"), rank=1, size=3, node="n1", attempt=4,
                         step=7, exclude=True)
    assert most_telling(folder, 4, echo) == failure
    tell(folder, failure)
    outcome = read_outcome(folder)
    assert (outcome["exit_code"], outcome["cause"], outcome["rank"], outcome["node"], outcome["exclude"]) == (75, "device", 1, "n1", ["n1"])
    assert outcome["reason"].startswith("rank 1 on n1: RuntimeError: CUDA error: uncorrectable ECC error encountered; the GPU's memory")


def test_only_a_node_whose_hardware_failed_is_left_out(folder: Path) -> None:
    for text in ("CUDA error: device-side assert triggered", "CUDA out of memory", "Connection refused", "x"):
        assert not note_error(folder, RuntimeError(text), rank=0, size=2, node="n0", attempt=1, exclude=True).exclude


def test_when_rank_0_could_not_say_it(folder: Path) -> None:
    """The launcher, or the batch script, finds it."""
    write_outcome(folder, 75, "asked to stop", cause="signal", attempt=1)
    assert not tell_if_nobody_did(folder, 2, {})
    note_error(folder, RuntimeError("Broken pipe"), rank=2, size=3, node="n2", attempt=2)
    assert not tell_if_nobody_did(folder, 2, {})         # an echo says nothing
    note_error(folder, DataError("cats-0003.tar: is damaged"), rank=1, size=3, node="n1", attempt=2, step=5)
    assert tell_if_nobody_did(folder, 2, {})
    outcome = read_outcome(folder)
    assert (outcome["exit_code"], outcome["attempt"], outcome["rank"], outcome["step"]) == (2, 2, 1, 5)
    assert "cats-0003.tar: is damaged" in outcome["reason"]
    assert tell_if_nobody_did(folder, 2, {})             # it is told
    assert not tell_if_nobody_did(folder, 3, {})


def test_the_batch_script_finds_it_too(folder: Path) -> None:
    (folder / "lease").mkdir()
    (folder / "lease" / "1").touch()
    (folder / BEGUN).parent.mkdir(exist_ok=True, parents=True)
    write_object(folder / BEGUN, {"before": {"lease": 1, **marks(folder)}})
    (folder / "lease" / "2").touch()
    note_error(folder, RuntimeError("Xid 79"), rank=5, size=8, node="n5", attempt=2)
    tell_for_job(folder)
    assert read_outcome(folder)["node"] == "n5"


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rank": 1}', b"\xff", json.dumps({"attempt": 1}).encode()])
def test_a_damaged_file_says_nothing(folder: Path, content: bytes) -> None:
    (folder / "logs" / "error-rank-1.json").write_bytes(content)
    assert most_telling(folder, 1) is None
    assert go(folder, "x", 1, rank=0) == 75
