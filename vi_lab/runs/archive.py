"""What stands in a checkpoint file, looked at before torch reads it.

`torch.load(weights_only=True)` runs no code, but believes what a file says of itself: it unpacks what is compressed,
reads beyond a tensor whose length is wrong, and makes whatever else its own pickles may hold. What is written here is
little: stored members, plain values, strided tensors.
"""

from __future__ import annotations

import collections
import io
import pickle
import pickletools
import zipfile
from typing import Any, ClassVar

LARGEST_PICKLE = 64 << 20
"""Bytes of all that is no tensor: the rows of some 200,000 epochs."""
MOST_MEMBERS = 100_000

OPCODES = frozenset({
    *("PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "GLOBAL", "REDUCE", "BUILD", "BINPERSID"),
    *("EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"),
})  # fmt: skip
"""What torch.save writes; none of them makes more than it reads."""

ITEMSIZE = {
    "DoubleStorage": 8, "FloatStorage": 4, "HalfStorage": 2, "BFloat16Storage": 2, "LongStorage": 8, "IntStorage": 4,
    "ShortStorage": 2, "CharStorage": 1, "ByteStorage": 1, "BoolStorage": 1,
}  # fmt: skip
"""Kinds of numbers in tensors, real ones -> bytes of each."""


class _Reader(pickle._Unpickler):  # the one in C fills a list as long as any number in the file says
    """Goes through a pickle and makes nothing of it but plain containers.

    Args:
        sizes: of the members that hold tensors, in bytes.
    """

    dispatch: ClassVar[dict] = {
        ord(code.code): pickle._Unpickler.dispatch[ord(code.code)]
        for code in pickletools.opcodes
        if code.name in OPCODES
    }

    def __init__(self, data: bytes, sizes: dict[str, int]) -> None:
        super().__init__(io.BytesIO(data))
        self.sizes = sizes

    def find_class(self, module: str, name: str) -> Any:
        """A stand-in for each of the few names that are expected."""
        if module == "torch" and name in ITEMSIZE:
            return name
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _tensor
        if module == "collections" and name in ("OrderedDict", "Counter"):
            return getattr(collections, name)
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> int:
        """The length of a storage, which must be that of its member."""
        kind, storage, key, device, length = pid
        size = self.sizes.get(str(key))
        if kind != "storage" or not isinstance(device, str) or not isinstance(length, int) or size is None:
            raise pickle.UnpicklingError("it names a tensor that is not there")
        if length * ITEMSIZE[storage] != size:
            raise pickle.UnpicklingError(f"tensor {key} is of {size} bytes, not of {length} numbers")
        return length


def _tensor(storage: int, offset: int, shape: tuple, stride: tuple, requires_grad: bool, hooks: Any) -> None:
    """Stands for a tensor; refuses one that reaches out of its storage, or stands for more numbers than that holds."""
    counts = (offset, *shape, *stride)
    if not all(type(number) is int and number >= 0 for number in counts) or len(shape) != len(stride) or hooks:
        raise pickle.UnpicklingError("it holds a tensor with hooks, or of no possible shape")
    numbers, last = 1, offset
    for size, step in zip(shape, stride, strict=True):
        numbers, last = numbers * size, last + (size - 1) * step
    if numbers and (last >= storage or numbers > storage):
        raise pickle.UnpicklingError("it holds a tensor that is larger than its numbers")


def check_archive(content: bytes | memoryview) -> None:
    """Refuse a checkpoint file that holds anything but what `torch.save` writes of tensors and plain values.

    Raises:
        ValueError: such a file, in the words for it; zipfile and pickle raise kinds of their own too.
    """
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        members = archive.infolist()
        names = [member.filename.lower() for member in members]
        if archive.comment or len(members) > MOST_MEMBERS or len(set(names)) < len(names):
            raise ValueError("its archive has a comment, too many members, or two of a name")
        if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
            raise ValueError("it is compressed")
        sizes = {member.filename.partition("/")[2]: member.file_size for member in members}
        unequal = any(member.file_size != member.compress_size for member in members)
        if unequal or sum(sizes.values()) > len(content) or len({name.partition("/")[0] for name in names}) != 1:
            raise ValueError("its members are not of the lengths that the archive says")
        if sizes.get("data.pkl", LARGEST_PICKLE + 1) > LARGEST_PICKLE:
            raise ValueError("it holds no values, or too many")
        with archive.open(next(member for member in members if member.filename.endswith("/data.pkl"))) as member:
            data = member.read(LARGEST_PICKLE)
    tensors = {name.removeprefix("data/"): size for name, size in sizes.items() if name.startswith("data/")}
    try:
        _Reader(data, tensors).load()
    except KeyError as error:
        raise ValueError(f"it holds what no checkpoint of ours does ({error})") from error
