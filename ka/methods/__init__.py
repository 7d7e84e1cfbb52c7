"""Methods without training: bicubic, linear and local injection; and consistency with what was observed."""

from collections.abc import Callable

from torch import Tensor

from ka.data.scenes import Scene

Method = Callable[[Scene], Tensor]
"""A loaded scene → the sharpened image, `bands h w`."""
