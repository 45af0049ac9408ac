"""The part of Python's pickle format that weights need, interpreted: nothing is imported, nothing is called."""

import io
import mmap
import pickletools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from resnet_jax.errors import UserError
from resnet_jax.tensors.stored import shown
from resnet_jax.tensors.torch_views import Storage, Tensor, count, typed, view

# A network of 7,000 tensors with its optimizer takes half a million; a byte can ask for an object of a hundred.
_MOST_STEPS = 2_000_000
_CODES = {opcode.code: opcode for opcode in pickletools.opcodes}

_STORAGES: dict[str, np.dtype] = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
}
_FUNCTIONS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_VALUES = {f"torch.{name}" for name in ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8", "bool")}

# What is read from returns no more than is there, whatever is asked for.
Stream = io.BytesIO | mmap.mmap


@dataclass(frozen=True)
class Global:
    """A name that the pickle mentions; the object of that name is never looked up."""

    name: str


def load(stream: Stream, path: Path) -> Any:
    """Interprets one pickle and leaves the stream behind it.

    Args:
      stream: a pickle of any protocol, at its beginning.
      path: the file's name, for messages.

    Returns:
      What was pickled, of dict (also for OrderedDict), list, tuple, str, int, float, bool, None, Tensor, Storage and Global (a dtype).
      Dictionaries and lists may contain themselves. Keys are strings or integers.

    Raises:
      UserError: where the pickle asks for anything else, by its name, the moment it is met; and for a damaged pickle.
    """
    machine = _Machine(stream, path)
    try:
        while not machine.step():
            pass
        return machine.pop()
    except UserError:
        raise
    except (IndexError, KeyError, TypeError, ValueError, OverflowError) as error:
        # Underflow of the stack, what the memo lacks, tuples of another length, and what pickletools raises at the end of the bytes.
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(f"{path} is damaged: its pickle cannot be followed ({ascii(reason)[1:-1]}); get it again") from error


class _Machine:
    def __init__(self, stream: Stream, path: Path):
        self._stream, self._path = stream, path
        self._steps = 0
        self._stack: list[Any] = []
        self._below: list[list[Any]] = []
        self._memo: dict[int, Any] = {}
        self._storages: dict[str, Storage] = {}

    def pop(self) -> Any:
        return self._stack.pop()

    def step(self) -> bool:
        """Follows one instruction; True at the end of the pickle."""
        self._spend(1)
        code = self._stream.read(1)
        opcode = _CODES.get(code.decode("latin-1"))
        if opcode is None:
            raise ValueError("it ends before its end" if not code else f"no instruction is {code!r}")
        stack = self._stack
        match opcode.name:
            case "BINPUT" | "LONG_BINPUT":
                self._memo[self._argument(opcode)] = stack[-1]
            case "MEMOIZE":
                self._memo[len(self._memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[self._argument(opcode)])
            case "BININT" | "BININT1" | "BININT2" | "LONG1" | "LONG4" | "BINFLOAT":
                stack.append(self._argument(opcode))
            case "BINUNICODE" | "SHORT_BINUNICODE" | "BINUNICODE8" | "BINSTRING" | "SHORT_BINSTRING":
                text = self._argument(opcode)
                text.encode()  # half a character (a lone surrogate) fails here rather than where it is printed
                stack.append(text)
            case "MARK":
                self._below.append(stack)
                self._stack = []
            case "TUPLE":
                self._push(tuple(self._pop_mark()))
            case "TUPLE1" | "TUPLE2" | "TUPLE3" | "EMPTY_TUPLE":
                stack.append(tuple(self._pop_many({"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}.get(opcode.name, 0))))
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NEWTRUE": True, "NEWFALSE": False}.get(opcode.name))
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "SETITEM":
                self._set(self._pop_many(2))
            case "SETITEMS":
                self._set(self._pop_mark())
            case "APPEND":
                self._extend(self._pop_many(1))
            case "APPENDS":
                self._extend(self._pop_mark())
            case "GLOBAL":
                stack.append(self._global(self._line(), self._line()))
            case "STACK_GLOBAL":
                module, name = self._pop_many(2)
                stack.append(self._global(typed(module, str), typed(name, str)))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                function, arguments = self._pop_many(2)
                stack.append(self._reduce(typed(function, Global).name, typed(arguments, tuple)))
            case "BUILD":
                # What an OrderedDict carries besides its entries: the _metadata of a module's state dict.
                typed(stack.pop(), dict)
                typed(stack[-1], dict)
            case "POP":
                stack.pop() if stack else self._pop_mark()
            case "POP_MARK":
                self._pop_mark()
            case "PROTO":
                if self._argument(opcode) > 5:
                    raise ValueError("a protocol later than 5")
            case "FRAME":
                self._argument(opcode)
            case "STOP":
                return True
            case "INST":
                raise self._refusal(f"asks for {shown(f'{self._line()}.{self._line()}')}")
            case _:
                raise self._refusal(f"uses the instruction {opcode.name}")
        return False

    def _spend(self, steps: int) -> None:
        self._steps += steps
        if self._steps > _MOST_STEPS:
            raise UserError(f"{self._path}: the pickle takes more than {_MOST_STEPS} steps, more than any weights need")

    def _argument(self, opcode: pickletools.OpcodeInfo) -> Any:
        assert opcode.arg is not None
        return opcode.arg.reader(self._stream)  # pyright: ignore[reportArgumentType]

    def _line(self) -> str:
        # pickletools would resolve escapes here, which pickle does not, and warn of those that it does not know.
        line = self._stream.readline()
        if not line.endswith(b"\n"):
            raise ValueError("a name without an end")
        return line[:-1].decode()

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _pop_mark(self) -> list[Any]:
        popped, self._stack = self._stack, self._below.pop()
        return popped

    def _pop_many(self, count: int) -> list[Any]:
        return [self._stack.pop() for _ in range(count)][::-1]

    def _set(self, items: list[Any]) -> None:
        target = typed(self._stack[-1], dict)
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[self._key(key)] = value

    def _extend(self, items: list[Any]) -> None:
        typed(self._stack[-1], list).extend(items)

    def _key(self, key: Any) -> str | int:
        # Tuples hash by recursion, and far integers can be chosen to hash alike.
        if isinstance(key, str) or (isinstance(key, int) and abs(key) < 2**60):
            return key
        raise self._refusal(f"has a dictionary with a key of type {type(key).__name__}")

    def _global(self, module: str, name: str) -> Global:
        full = f"{module}.{name}"
        if full not in _FUNCTIONS and full not in _STORAGES and full not in _VALUES:
            raise self._refusal(f"asks for {shown(full)}")
        return Global(full)

    def _storage(self, pid: Any) -> Storage:
        # Zip: ("storage", type, key, location, numel); legacy adds the view of another storage, None since torch 0.4.
        if type(pid) is not tuple or len(pid) not in (5, 6) or pid[0] != "storage" or (len(pid) == 6 and pid[5] is not None):
            raise self._refusal("has a persistent id that is not a plain storage's")
        kind, key = typed(pid[1], Global).name, typed(pid[2], str)
        if kind not in _STORAGES:
            raise self._refusal(f"asks for a storage of type {kind}")
        storage = Storage(key, _STORAGES[kind], count(pid[4]))
        if self._storages.setdefault(key, storage) != storage:
            raise ValueError(f"storage {shown(key)} is described in two ways")
        return storage

    def _reduce(self, name: str, arguments: tuple[Any, ...]) -> Any:
        match name:
            case "collections.OrderedDict":
                if not arguments:
                    return {}
                # Python 2 hands over the entries.
                (pairs,) = arguments
                self._spend(len(typed(pairs, list)))
                return {self._key(key): value for key, value in pairs}
            case "torch.Size":
                (sizes,) = arguments
                return typed(sizes, tuple)
            case "torch._utils._rebuild_parameter":
                tensor, _, _ = arguments
                return typed(tensor, Tensor)
            case "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2":
                storage, offset, shape, strides = arguments[:4]
                return view(storage, offset, shape, strides)
            case _:
                raise self._refusal(f"calls {name}")

    def _refusal(self, what: str) -> UserError:
        return UserError(
            f"{self._path}: the pickle {what}, which is not a tensor, dictionary, number or string: nothing was executed. Convert it "
            f'where you trust it: safetensors.torch.save_file(torch.load({str(self._path)!r})["state_dict"], "weights.safetensors")'
        )
