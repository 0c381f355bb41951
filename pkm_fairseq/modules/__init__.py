from .encoder import PKMTransformerEncoder
from .encoder_layer import PKMTransformerEncoderLayer
from .product_key_memory import ProductKeyMemory
from .query_norm import QueryBatchNorm
from .value_table import QuantizedValueTable, ValueTable

__all__ = [
    "PKMTransformerEncoder",
    "PKMTransformerEncoderLayer",
    "ProductKeyMemory",
    "QuantizedValueTable",
    "QueryBatchNorm",
    "ValueTable",
]
