"""Which errors another attempt may mend: one table of what CUDA, NCCL, gloo, torch and the system say, with its sources.  Imports no torch.

Sources: the CUDA runtime API's `cudaError` and the driver's `CUresult` (docs.nvidia.com/cuda/cuda-runtime-api, Data types); NVIDIA's
catalogue of Xid errors (docs.nvidia.com/deploy/xid-errors) and what it advises (RESTART_APP, RESET_GPU, ...); `ncclResult_t` (NCCL's
documentation, API, Types) and its troubleshooting; `cudnnStatus_t` and `cublasStatus_t`; c10d's and gloo's own messages in torch's source.

Whatever asks for another attempt is bounded: cluster/tries.py refuses one after some in a row got no further.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Again = Literal["yes", "once", "no"]


@dataclass(frozen=True)
class Kind:
    """What an error is a case of."""

    cause: str                  # one of metrics.system.CAUSES
    again: Again                # whether another attempt may help; once: unless the same came at the same step before
    hint: str = ""              # what a person may do
    of_node: bool = False       # the machine it came from is suspect
    is_echo: bool = False       # it may say no more than that another rank is gone


_ECC = Kind("device", "yes", "the GPU's memory is failing: have the node drained and its GPU reset", of_node=True)
_LOST = Kind("device", "yes", "the GPU or its driver does not answer: have the node drained and reset", of_node=True)
_LINK = Kind("device", "yes", "a link between GPUs is failing: have the node drained", of_node=True)
_KERNEL = Kind("device", "once", "a kernel went wrong: if it does so at the same step again, look for the bug with CUDA_LAUNCH_BLOCKING=1")
_GPU_MEMORY = Kind("memory", "once", "set a smaller micro_batch, recompute, or a stage of ZeRO that shards more")
_HOST_MEMORY = Kind("memory", "once", "ask for more host memory, or fewer data.workers")
_NETWORK = Kind("network", "yes", "look at the network between the nodes (NCCL_DEBUG=WARN says more)")
_PEER = Kind("network", "yes", "another rank may have ended, or the network failed", is_echo=True)
_DISK = Kind("disk", "yes", "see to the file system")
_FULL = Kind("disk", "once", "make room on the disk")
_SETUP = Kind("crash", "no", "this torch, driver and GPU do not fit together")
_BUG = Kind("crash", "no")
UNKNOWN = Kind("crash", "once")

# Names of CUDA's errors, without their prefixes (cudaError..., CUDA_ERROR_...), in small letters and digits alone; several words of a
# message mean the same.
_CUDA: dict[Kind, tuple[str, ...]] = {
    _ECC: ("eccuncorrectable", "uncorrectableeccerror", "doublebitecc", "eccerror", "contained"),
    _LINK: ("nvlinkuncorrectable", "uncorrectablenvlinkerror", "nvlinkerror", "overnvlink"),
    _LOST: ("devicesunavailable", "deviceunavailable", "alldevicesbusy", "allcudacapabledevicesarebusy", "nodevice", "nocudacapabledevice",
            "hardwarestackerror", "unknown", "unknownerror", "systemnotready", "systemnotyetinitialized", "systemdrivererror",
            "fallenoffthebus", "gpuislost", "externaldevice", "mpsserver", "mpsrpcfailure", "mpsconnectionfailed", "mpsclientterminated",
            "cudartunloading", "driverdeinitialized", "deinitialized", "drivershuttingdown", "initializationerror", "initializationfailed",
            "operatingsystem", "oscallfailed", "timeout", "gspdidnotrespond", "gsprpctimeout", "tensormemoryleak",
            "unabletodeterminethedevicehandle"),
    _KERNEL: ("illegaladdress", "illegalmemoryaccess", "launchfailure", "launchfailed", "unspecifiedlaunchfailure", "launchtimeout",
              "launchtimedout", "deviceassert", "devicesideassert", "assert", "misalignedaddress", "illegalinstruction",
              "invalidaddressspace", "invalidpc", "invalidprogramcounter", "operationnotsupportedonglobal",
              "cooperativelaunchtoolarge", "stackoverflow"),
    _GPU_MEMORY: ("memoryallocation", "outofmemory"),
    _SETUP: ("nokernelimage", "nobinaryforgpu", "invaliddevicefunction", "insufficientdriver", "driverversionisinsufficient",
             "systemdrivermismatch", "unsupporteddisplaydriver", "compatnotsupportedondevice", "unsupportedptxversion",
             "unsupportedtoolchain", "invalidptx", "invaliddevice", "invaliddeviceordinal", "jitcompilernotfound", "sharedobject"),
}
# Of these the names that, as words in a sentence, may mean something else.
_NAMES_ALONE = ("unknown", "assert", "timeout", "contained", "nodevice", "operatingsystem", "sharedobject", "invaliddevice",
                "stackoverflow", "deinitialized", "externaldevice", "initializationerror")
# What the driver's number says; whatever is not named here is hardware.  After 13, 31 and 43 the catalogue suspects the program first.
_XID = {**dict.fromkeys((6, 7, 8, 11, 13, 24, 25, 31, 32, 43, 45, 68, 69), _KERNEL),
        **dict.fromkeys((48, 63, 64, 92, 94, 95, 140, 171, 172), _ECC), **dict.fromkeys((72, 74, 149, 150), _LINK)}
_LIBRARY = re.compile(r"\b(?:CUBLAS|CUDNN|CUSPARSE|CUSOLVER|CURAND|CUFFT|NVRTC|CUDNN_FE|CUBLASLT)_(?:STATUS_)?([A-Z_]+)")
_LIBRARY_SAYS: tuple[tuple[str, Kind], ...] = (
    ("ALLOC_FAILED|OUT_OF_MEMORY|NOT_INITIALIZED|INSUFFICIENT_WORKSPACE", _GPU_MEMORY),
    ("EXECUTION_FAILED|EXEC_FAILED|INTERNAL_ERROR|MAPPING_ERROR|LAUNCH_FAILURE|DEVICE_ERROR|SETUP_FAILED|PREEXISTING_FAILURE", _KERNEL),
    ("NOT_SUPPORTED|BAD_PARAM|INVALID_VALUE|INVALID_ARG|ARCH_MISMATCH|LICENSE|VERSION", _BUG),
)
# Read from the top; the first that is found counts.
_SAYS: tuple[tuple[str, Kind], ...] = (
    (r"defaultcpuallocator|can'?t allocate memory|cannot allocate memory|not enough memory|std::bad_alloc|insufficient shared memory"
     r"|unable to (?:open|allocate) shared memory|bus error|\bSIGBUS\b|oom[- ]kill|out of host memory", _HOST_MEMORY),
    (r"nccl.*(?:invalid ?usage|invalid ?argument)|ncclInvalid(?:Usage|Argument)", _BUG),
    (r"nccl.*unhandled cuda error|ncclUnhandledCudaError", _LOST),
    (r"remote process exited|ncclRemoteError|connection closed by peer|connection reset by peer|broken pipe|recvValue failed|failed to recv"
     r"|socket timeout|timed out waiting|application timeout caused pair closure|sendBytes failed|recvBytes failed"
     r"|connection was likely closed|store.*(?:server|client) (?:is )?(?:gone|shut)", _PEER),
    (r"unhandled system error|ncclSystemError|nccl.*internal error|ncclInternalError|nccl.*(?:timeout|timed out|unhandled|network|aborted)"
     r"|watchdog caught collective operation timeout|\bibv_\w+|vendor err|transport retry|qp operation|infiniband|net_ib|\bRDMA\b"
     r"|(?:gloo|tcp|connect|socket|dist(?:network|store|backend)error).*(?:refused|failed|unreachable|timed? ?out|timeout|no route|error)"
     r"|connection (?:refused|timed out|aborted)|network is (?:unreachable|down)|no route to host|host is (?:down|unreachable)"
     r"|name or service not known|temporary failure in name resolution|cannot assign requested address|timed out after \d+ ?ms", _NETWORK),
    (r"no space left on device|disk quota exceeded|file too large", _FULL),
    (r"input/output error|remote i/o error|stale (?:nfs )?file handle|read-only file system|transport endpoint is not connected"
     r"|structure needs cleaning|no such device or address|PytorchStreamReader failed|unexpected pos|file write failed"
     r"|communication error on send|device or resource busy|resource temporarily unavailable", _DISK),
)
# torch says so of a program that is wrong; it would be so again.
_WRONG_PROGRAM = re.compile(
    r"shapes? cannot be multiplied|must match the (?:size|existing size)|size mismatch|sizes of tensors must match|size of tensor a"
    r"|is invalid for input of size|expected all tensors to be on the same device|expected scalar type|mat1 and mat2|expected .* but got"
    r"|not implemented for|does not require grad|backward through the graph a second time|modified by an inplace operation"
    r"|given groups=|dimension out of range|out of range|input type .* and weight type|can'?t convert|invalid argument|wrong number of"
    r"|shape mismatch|the expanded size|stack expects|expects? .* (?:argument|tensor|dimension)|should be the same|inconsistent tensor"
    r"|error\(s\) in loading state_dict|unsupported|no grad|view size is not compatible|must have the same|leaf variable", re.IGNORECASE)
# A program that is wrong, whatever its words.  An OSError, a MemoryError and torch's own errors (RuntimeErrors) are not among them.
_BUGS = ("TypeError", "KeyError", "IndexError", "LookupError", "AssertionError", "AttributeError", "NameError", "UnboundLocalError",
         "ValueError", "NotImplementedError", "ImportError", "ModuleNotFoundError", "ArithmeticError", "ZeroDivisionError", "OverflowError",
         "RecursionError", "SyntaxError", "StopIteration", "UnicodeError")


def classify(text: str, types: Iterable[str] = ("RuntimeError",)) -> Kind:
    """What an error with these words is a case of.  `types`: the names of its class and of those that this comes from."""
    names = tuple(types)
    if "OutOfMemoryError" in names:
        return _GPU_MEMORY
    if "MemoryError" in names:
        return _HOST_MEMORY
    if any(name in _BUGS for name in names):
        return _BUG
    if found := re.search(r"\bXid\b\W*(?:\([^)]*\))?\W*(?:error|code)?\W*(\d+)", text, re.IGNORECASE):
        return _XID.get(int(found[1]), _LOST)
    if found := _LIBRARY.search(text):
        for words, kind in _LIBRARY_SAYS:
            if re.search(words, found[1]):
                return kind
        return _KERNEL
    if (by_device := _by_device(text)) is not None:
        return by_device
    for words, kind in _SAYS:
        if re.search(words, text, re.IGNORECASE):
            return kind
    if any(name in ("DistNetworkError", "DistStoreError", "DistBackendError", "ConnectionError", "TimeoutError") for name in names):
        return _NETWORK
    if "OSError" in names:
        return Kind("disk", "once")
    return _BUG if _WRONG_PROGRAM.search(text) else UNKNOWN


# What torch adds to every error of CUDA, and what NCCL says of an error of CUDA's whatever it was.
_ADVICE = re.compile(r"CUDA kernel errors might be asynchronously[^\n]*|For debugging consider[^\n]*|Compile with `?TORCH_USE_\w+_DSA[^\n]*"
                     r"|unhandled cuda error|ncclUnhandledCudaError|call to cuda function failed", re.IGNORECASE)


def _by_device(text: str) -> Kind | None:
    """Of what the driver or the CUDA runtime says, by the name or the words of its error."""
    text = _ADVICE.sub("", text)
    bare = re.sub(r"[^a-z0-9]", "", text.lower())
    says = r"cuda_?\s?(?:failure|error\s?[:_a-z(])|\becc\b|nvlink|fallen off" if re.search("nccl", text, re.IGNORECASE) else \
        r"cuda|hiperror|\bhip\b|\becc\b|gpu|device-side|nvlink|nvml|nvrm"
    if not re.search(says, text, re.IGNORECASE):
        return None
    name = re.search(r"cuda_?error_?([a-z_]{3,})", text, re.IGNORECASE)
    if name and (kind := _named(name[1].replace("_", "").lower())) is not None:
        return kind
    for kind, words in _CUDA.items():
        if any(word in bare for word in words if word not in _NAMES_ALONE):
            return kind
    if re.search(r"cuda (?:runtime |driver |kernel )?error|cuda_error|cudaerror", text, re.IGNORECASE):
        return _BUG if "invalid" in bare else _KERNEL
    return None


def _named(name: str) -> Kind | None:
    return next((kind for kind, words in _CUDA.items() if name in words), None)


def signature(kind: str, text: str) -> str:
    """An error without what differs from one time to the next: addresses, process numbers, times, places in memory."""
    return f"{kind}: " + re.sub(r"0x[0-9a-fA-F]+|\d+(?:\.\d+)?", "#", text.strip())[:500]
