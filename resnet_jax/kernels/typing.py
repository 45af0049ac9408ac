"""Array types of annotations: those of jaxtyping, or arrays where it is not installed."""

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from jax import Array
from jax.typing import ArrayLike

if TYPE_CHECKING:  # as in jaxtyping
    from typing import Annotated as Float
    from typing import Annotated as Int
    from typing import Annotated as Key
    from typing import Annotated as Num
elif find_spec("jaxtyping"):
    from jaxtyping import Float, Int, Key, Num
else:

    class _Shaped:
        def __class_getitem__(cls, item: tuple[Any, str]) -> Any:
            return item[0]

    Float = Int = Key = Num = _Shaped

__all__ = ["Array", "ArrayLike", "Float", "Int", "Key", "Num"]
