from .init_from import InitFromConfig, InitFromTask
from .masked_lm import PKMMaskedLMTask
from .sentence_prediction import PKMSentencePredictionTask
from .train_part import TrainPartConfig, TrainPartTask

__all__ = [
    "InitFromConfig",
    "InitFromTask",
    "PKMMaskedLMTask",
    "PKMSentencePredictionTask",
    "TrainPartConfig",
    "TrainPartTask",
]
