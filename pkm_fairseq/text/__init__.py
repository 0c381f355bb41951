from .tokenizer_json import TokenizerJsonBPE

__all__ = ["TokenizerJsonBPE"]
