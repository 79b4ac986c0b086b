"""The outputs of calls: a mapping whose fields can also be read as attributes and by position."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

# Names before transformers 5.24, by which a field can still be read and set. The mapping itself has only the new names.
OLD_NAMES = {"past_key_values": "cache"}


class ModelOutput(dict[str, Any]):
    """Named results in a fixed order. A field that is None can be read as an attribute, but is neither in the mapping
    nor in the tuple.

    `out.logits`, `out["logits"]`, `out[0]`, `out[:2]`, `out.to_tuple()` and `f(**out)` work as with transformers'
    outputs of the same fields, also under OLD_NAMES. This one class takes the place of all of transformers' classes of
    outputs, of BatchFeature and of BatchEncoding.
    """

    def __init__(self, given: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **named: Any):
        """Made of named fields; or of a mapping or of pairs, from which accelerate and DataParallel make copies."""
        fields = {OLD_NAMES.get(name, name): value for name, value in (dict(given) | named).items()}
        super().__init__({name: value for name, value in fields.items() if value is not None})
        self.__dict__["fields"] = tuple(fields)

    def __reduce__(self) -> Any:
        return type(self), ({name: self.get(name) for name in self.__dict__["fields"]} | dict(self),)

    def __getitem__(self, key: Any) -> Any:
        return super().__getitem__(OLD_NAMES.get(key, key)) if isinstance(key, str) else self.to_tuple()[key]

    def __setitem__(self, key: str, value: Any) -> None:
        super().__setitem__(OLD_NAMES.get(key, key), value)

    def __contains__(self, key: object) -> bool:
        return super().__contains__(OLD_NAMES.get(key, key) if isinstance(key, str) else key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(OLD_NAMES.get(key, key), default)

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        if OLD_NAMES.get(name, name) in self.__dict__.get("fields", ()):
            return None
        raise AttributeError(f"no field {name!r}; there are {list(self.__dict__.get('fields', ()))}")

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value

    def to_tuple(self) -> tuple[Any, ...]:
        """The values of the fields that are not None, in order."""
        return tuple(self.values())

    def to(self, *where: Any, device: Any = None, dtype: torch.dtype | None = None) -> "ModelOutput":
        """Move the tensors to a device, in place. A dtype changes only tensors of floating point."""
        for given in where:
            device, dtype = (device, given) if isinstance(given, torch.dtype) else (given, dtype)
        for name, value in self.items():
            if isinstance(value, Tensor):
                self[name] = value.to(device=device, dtype=dtype if value.is_floating_point() else None)
        return self
