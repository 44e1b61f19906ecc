"""Nets made of layers: `serial`, `residual`, `branch`, `repeat`, `tied`."""

from jbp.combine.base import Combinator as Combinator
from jbp.combine.base import LayerError as LayerError
from jbp.combine.base import Place as Place
from jbp.combine.base import Visit as Visit
from jbp.combine.base import located as located
from jbp.combine.branch import Branch as Branch
from jbp.combine.branch import branch as branch
from jbp.combine.repeat import Repeat as Repeat
from jbp.combine.repeat import repeat as repeat
from jbp.combine.residual import Residual as Residual
from jbp.combine.residual import residual as residual
from jbp.combine.serial import Serial as Serial
from jbp.combine.serial import serial as serial
from jbp.combine.tied import Tied as Tied
from jbp.combine.tied import tied as tied
