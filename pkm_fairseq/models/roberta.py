"""RoBERTa with product-key memory, its flags and its architectures."""

import logging
import re
from argparse import Namespace
from contextlib import ExitStack, contextmanager

import torch
from fairseq.dataclass.utils import gen_parser_from_dataclass
from fairseq.models import register_model, register_model_architecture
from fairseq.models.roberta import RobertaEncoder, RobertaModel
from fairseq.models.roberta.model import (
    base_architecture,
    roberta_base_architecture,
    roberta_large_architecture,
)
from fairseq.modules.transformer_sentence_encoder import init_bert_params
from fairseq.utils import safe_getattr, safe_hasattr
from omegaconf import OmegaConf
from torch.nn.parallel import DistributedDataParallel

from pkm_fairseq.checkpoints.conversion import check_state_dict, fit_checkpoint, memory_options
from pkm_fairseq.checkpoints.safe_reading import check_file, read_checkpoint
from pkm_fairseq.config import PKMConfig, default_key_dim, flag
from pkm_fairseq.distributed import is_sparse, shard_of
from pkm_fairseq.modules import PKMTransformerEncoder, ProductKeyMemory, QuantizedValueTable
from pkm_fairseq.ops import quantise_rows
from pkm_fairseq.refusals import RefusalError

from .hub import load_interface
from .option_names import check_names
from .unsupported import check_pruned, check_unsupported

logger = logging.getLogger(__name__)


@register_model("pkm_roberta")
class PKMRobertaModel(RobertaModel):
    """RoBERTa some of whose layers hold a large memory (Kim & Jung 2020, arXiv 2010.03881)."""

    memory_class = ProductKeyMemory  # for subclasses to change

    def __init__(self, args, encoder):
        super().__init__(args, encoder)
        # fairseq's constructor has just redrawn every nn.Linear, the memories' own included.
        for memory in self.memories().values():
            memory.reset_parameters()
        self._frozen = False
        self._shared_by_optimizer = {}
        self._table_dtype = encoder.pkm_config.pkm_table_dtype
        if self._table_dtype == "model":
            self._mark_parameters()
        else:
            self._compact_tables()

    def _compact_tables(self):
        """Puts a copy in fewer bits, which has no parameter, in the place of each table."""
        memories = self.memories()
        for layers, table in self.tables().items():
            compact = QuantizedValueTable(table, self._table_dtype)
            for layer in layers:
                memories[layer].values = compact

    def _refuse_compact_tables(self):
        if self._table_dtype != "model":
            raise RefusalError(
                f"--pkm-table-dtype {self._table_dtype} is for evaluation, its values cannot be "
                "trained: remove it, or call eval()"
            )

    def _mark_parameters(self):
        """Marks the memories' parameters, for optimizers and workers."""
        # By the group fairseq's optimizers, ours among them, know these from the rest.
        for memory in self.memories().values():
            for param in memory.search_parameters():
                param.param_group = "pkm_search"
        for table in self.tables().values():
            table.trained.param_group = "pkm_values"
            table.trained.pkm_grad = table.grad
            table.trained.pkm_shard = table.weight.pkm_shard = table.shard
        self._shared_by_optimizer = {
            name: param
            for name, param in self.named_parameters()
            if shard_of(param) or (is_sparse(param) and param.requires_grad)
        }
        # Workers share these gradients through the optimizer: so says each of fairseq's backends.
        for values in self._shared_by_optimizer.values():
            values.expert = True  # legacy_ddp
        DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(
            self, list(self._shared_by_optimizer)
        )

    @staticmethod
    def add_args(parser):
        """Adds RoBERTa's flags and the memory's."""
        RobertaModel.add_args(parser)
        # Without defaults, so that an architecture can tell which options were given.
        gen_parser_from_dataclass(parser, PKMConfig(), delete_default=True)

    @classmethod
    def check_training(cls, args, task):
        """Refuses options that a model, about to be trained, does not have or cannot work with.

        Raises:
            RefusalError: naming them.
        """
        check_names(cls, args)
        positions = safe_getattr(args, "max_positions")
        tokens = safe_getattr(task.cfg, "tokens_per_sample")
        # Sentences one by one are as long as they are.
        if positions and tokens and tokens > positions and task.cfg.sample_break_mode != "eos":
            raise RefusalError(
                f"--max-positions {positions} is below --tokens-per-sample {tokens}: raise the one "
                "or lower the other"
            )

    @classmethod
    def build_model(cls, args, task):
        """Builds the model from the options of either command line.

        Raises:
            RefusalError: if options are unknown, wrong, or cannot work together, naming them.
        """
        if OmegaConf.is_config(args):
            OmegaConf.set_struct(args, False)
        base_architecture(args)
        if not safe_hasattr(args, "max_positions"):
            args.max_positions = safe_getattr(args, "tokens_per_sample", task.max_positions())
        config = PKMConfig.from_args(args)
        config.check(args.encoder_layers)
        check_unsupported(args, config)
        config.pkm_key_dim = config.pkm_key_dim or default_key_dim(args.encoder_embed_dim)
        # Into the checkpoint goes every option, so that a later default cannot change the model.
        for name, value in vars(config).items():
            if name.startswith("pkm_"):
                setattr(args, name, value)
        args.pkm_shards = 1  # of the run, not of the model: a checkpoint is whole
        encoder = PKMRobertaEncoder(args, task.source_dictionary, config, cls.memory_class)
        if OmegaConf.is_config(args):
            # As RobertaModel leaves it: fairseq's trainer asks for options that do not exist.
            OmegaConf.set_struct(args, True)
        model = cls(args, encoder)
        for layer, memory in model.memories().items():
            logger.info("memory of layer %d: %s, %s", layer, memory.extra_repr(), memory.values)
        return model

    def upgrade_state_dict_named(self, state_dict, name):
        """Makes a checkpoint fit, with or without memory, whichever way fairseq loads it.

        Raises:
            RefusalError: if it cannot fit, naming the shapes and the options to change.
        """
        check_state_dict(state_dict)
        file = dict(state_dict)
        encoder = self.encoder.sentence_encoder
        had_last_norm = encoder.layer_norm is not None
        with _spectral_heads_known(state_dict):
            super().upgrade_state_dict_named(state_dict, name)
        if had_last_norm and encoder.layer_norm is None:
            # So fairseq reads checkpoints without a version, as the published ones are.
            raise RefusalError(
                "the checkpoint was trained otherwise: remove --encoder-normalize-before"
            )
        for key in [key for key in state_dict if key.endswith((".search.relu", ".search.sigmoid"))]:
            # So were they called while values, and not weights, were divided by top-k.
            state_dict[f"{key}_scale"] = torch.ones_like(state_dict.pop(key))
        model = self.state_dict()
        for scales in (key for key in model if key.endswith(".pkm.values.scales")):
            weight = scales.replace(".scales", ".weight")
            if weight in state_dict and state_dict[weight].is_floating_point():
                state_dict[weight], state_dict[scales] = quantise_rows(state_dict[weight])
        # In a checkpoint tables are whole: let those that are split over workers look like it.
        params = self.state_dict(keep_vars=True)
        shards = {key: shard_of(param) for key, param in params.items() if shard_of(param)}
        whole = {
            key: model[key][:, :1].expand(-1, model[key].shape[1] * shard.count)
            for key, shard in shards.items()
        }
        fitted, notes = fit_checkpoint(state_dict, {**model, **whole}, file)
        for key, shard in shards.items():
            fresh = fitted[key] is whole[key]
            fitted[key] = model[key] if fresh else shard.columns(fitted[key])
        for note in notes:
            logger.info(note)
        state_dict.clear()
        state_dict.update(fitted)

    def init_from(self, path):
        """Takes all but the memory from a fairseq checkpoint of a RoBERTa without one.

        Args:
            path: the checkpoint file.

        Raises:
            RefusalError: if it cannot be read or does not fit, naming what to change.
        """
        check_file("--pkm-init-from", path)
        checkpoint = read_checkpoint(path)
        trained = checkpoint.get("args") or checkpoint["cfg"].get("model", {})
        trained = vars(trained) if isinstance(trained, Namespace) else trained
        state = checkpoint["model"]
        check_state_dict(state)
        if memory_options(state):
            raise RefusalError(
                f"--pkm-init-from {path} has a memory already: go on from it with --restore-file "
                "or --finetune-from-model"
            )
        known = {"pkm_layer_norm_eps": PKMConfig().pkm_layer_norm_eps, **trained}
        for option in ("encoder_attention_heads", "activation_fn", "pkm_layer_norm_eps"):
            theirs, ours = known.get(option), safe_getattr(self.args, option)
            if theirs is not None and theirs != ours:
                raise RefusalError(
                    f"--pkm-init-from {path} has {flag(option)} {theirs} (not {ours})"
                )
        logger.info("starting from %s", path)
        self.load_state_dict(state)

    def train_slots(self, slots):
        """Trains only some of the values; see ``ValueTable.train_rows``.

        Args:
            slots: a dict from the layers of each table, as ``tables`` gives them, to slots, (R,),
                int64, ascending.

        Raises:
            RefusalError: if the tables are kept in fewer bits, for evaluation.
        """
        self._refuse_compact_tables()
        for layers, table in self.tables().items():
            table.train_rows(slots[layers])
        self._mark_parameters()

    def freeze_rest(self, head=None):
        """Lets nothing but values, those that are trained anyway, and one head be trained.

        What is frozen stays as it is to the bit, the statistics of query batch norm included, which
        then normalises as in evaluation. Dropout continues.

        Args:
            head: name of the classification head, None for none.

        Raises:
            RefusalError: if an option of RoBERTa needs all to be trained, or the tables are kept in
                fewer bits, for evaluation.
        """
        self._refuse_compact_tables()
        refused = {
            "checkpoint_activations": "fails where a layer has nothing to train",
            "encoder_layerdrop": "fails where a layer has nothing to train",
            "quant_noise_pq": "overwrites weights, and nothing mends those that are frozen",
        }
        for option, reason in refused.items():
            if safe_getattr(self.args, option):
                raise RefusalError(f"{flag(option)} {reason}: leave it or --pkm-freeze-rest out")
        trained = {id(table.trained) for table in self.tables().values()}
        for name, param in self.named_parameters():
            if id(param) not in trained and not name.startswith(f"classification_heads.{head}."):
                param.requires_grad_(False)
        for memory in self.memories().values():
            if hasattr(memory.query_norm, "freeze"):
                memory.query_norm.freeze()
        self._frozen = True

    def register_classification_head(self, name, num_classes=None, inner_dim=None, **options):
        """Same as in fairseq's method, on the model's device: a checkpoint may bring heads."""
        super().register_classification_head(name, num_classes, inner_dim, **options)
        head = self.classification_heads[name].to(self.encoder.sentence_encoder.embed_tokens.weight)
        head.requires_grad_(not self._frozen)

    @contextmanager
    def whole_tables(self, optimizer):
        """Has state dicts hold whole tables, on the worker that saves, if workers split them.

        All workers have to enter it, and none of what is saved may change meanwhile.

        Args:
            optimizer: fairseq's, whose state of the tables is to be whole, too.
        """
        with ExitStack() as gathered:
            for table in self.tables().values():
                if table.shard is not None:
                    state = optimizer.optimizer.state.get(table.trained, {})
                    gathered.enter_context(table.gathered(state.values()))
            yield

    def average_query_statistics(self):
        """Gives all workers, each of which has to call this, the same running statistics."""
        for memory in self.memories().values():
            if hasattr(memory.query_norm, "average_over_workers"):
                memory.query_norm.average_over_workers()

    @contextmanager
    def not_counting(self):
        """Keeps the batches of the block, which count for nothing, out of the query statistics."""
        norms = [memory.query_norm for memory in self.memories().values()]
        for norm in norms:
            norm.update_stats = False
        try:
            yield
        finally:
            for norm in norms:
                norm.update_stats = True

    def forward(self, *args, **options):
        """Same as in fairseq's RoBERTa, unless it is trained by an optimizer that cannot.

        Raises:
            RefusalError: if values have sparse gradients that nobody takes or torch cannot add up,
                or cannot be trained.
        """
        if self.training and torch.is_grad_enabled():
            self._refuse_compact_tables()
            check_pruned(self)
            share = self.encoder.pkm_config.pkm_share_values
            for values in self._shared_by_optimizer.values():
                sparse = is_sparse(values)
                half_on_cpu = values.dtype == torch.float16 and values.is_cpu
                if sparse and half_on_cpu and (share or values.grad is not None):
                    other = "no --pkm-share-values" if share else "--update-freq 1"
                    raise RefusalError(
                        "torch adds up no sparse gradients of float16 on a CPU: choose --pkm-grad "
                        f"dense, bfloat16 or {other}"
                    )
                if values.requires_grad and not hasattr(values, "taken_by_lazy_adam"):
                    option = "--pkm-grad sparse" if sparse else "--pkm-shards"
                    other = "choose --pkm-grad dense" if sparse else "leave --pkm-shards out"
                    raise RefusalError(
                        f"{option} needs --optimizer pkm_adam, and half precision needs "
                        "--memory-efficient-fp16 or --memory-efficient-bf16 with it: add them, or "
                        f"{other}"
                    )
        return super().forward(*args, **options)

    @classmethod
    def hub_models(cls):
        """Returns no models: none is published to download."""
        return {}

    @classmethod
    def from_pretrained(
        cls,
        model_name_or_path,
        checkpoint_file="model.pt",
        data_name_or_path=".",
        bpe=None,
        **overrides,
    ):
        """Loads a checkpoint, with or without memory, for use from Python.

        Args:
            model_name_or_path: folder of the checkpoint.
            checkpoint_file: the checkpoint's name in it.
            data_name_or_path: folder of the binary data the model was trained on, with its
                dictionary; if it starts with a dot, seen from the folder of the checkpoint.
            bpe: sentencepiece, gpt2 or tokenizer_json; None for what the files given or found
                beside the checkpoint or the data say.
            overrides: options of the checkpoint to change. ``pkm_layers=[4, 8]`` and its like give
                a model without memory a fresh one; ``pkm_table_dtype="int8"`` or "bf16" keeps the
                values in fewer bits, for inference; ``sentencepiece_model=``,
                ``tokenizer_json=``, or ``gpt2_encoder_json=`` and ``gpt2_vocab_bpe=``, name the
                files of ``bpe``.

        Returns:
            fairseq's RobertaHubInterface, with ``encode``, ``fill_mask``, ``extract_features``,
            ``predict``. Without BPE files, what takes or gives text raises a ValueError that says
            which to give.

        Raises:
            RefusalError: if the checkpoint does not fit, or BPE files asked for are missing.
        """
        return load_interface(
            cls, model_name_or_path, checkpoint_file, data_name_or_path, bpe, overrides
        )

    def memories(self):
        """Returns the model's memories by the layer that holds them, from the first to the last."""
        return {
            int(re.search(r"\blayers\.(\d+)\.", name)[1]): module
            for name, module in self.named_modules()
            if isinstance(module, ProductKeyMemory)
        }

    def memory_layers(self):
        """Returns the encoder layers that hold the memories, by the same numbers."""
        layers = self.encoder.sentence_encoder.layers
        return {layer: layers[layer] for layer in self.memories()}

    def tables(self):
        """Returns the tables of values by the layers that read them, as tuples, ascending."""
        tables = {}
        for layer, memory in self.memories().items():
            tables.setdefault(memory.values, []).append(layer)
        return {tuple(layers): table for table, layers in tables.items()}


class PKMRobertaEncoder(RobertaEncoder):
    """RoBERTa's encoder and LM head around a ``PKMTransformerEncoder``.

    Args:
        args: the model's options.
        dictionary: the source dictionary.
        config: a checked ``PKMConfig``.
        memory_class: ``ProductKeyMemory`` or a subclass.
    """

    def __init__(self, args, dictionary, config, memory_class):
        self.pkm_config = config
        self._memory_class = memory_class
        super().__init__(args, dictionary)
        # fairseq builds its layer norms without asking for an epsilon.
        for module in self.modules():
            if isinstance(module, type(self.lm_head.layer_norm)):
                module.eps = config.pkm_layer_norm_eps

    def build_encoder(self, args, dictionary, embed_tokens):
        encoder = PKMTransformerEncoder(
            args, dictionary, embed_tokens, self.pkm_config, self._memory_class
        )
        encoder.apply(init_bert_params)
        return encoder


@contextmanager
def _spectral_heads_known(state_dict):
    """Shows fairseq the weights of heads with spectral norm under the name by which it looks."""
    ending = ".out_proj.weight_orig"
    shown = {key[: -len("_orig")]: key for key in state_dict if key.endswith(ending)}
    state_dict.update({name: state_dict[key] for name, key in shown.items()})
    yield
    for name in shown:
        state_dict.pop(name, None)


def _check_device(args):
    """Undoes what fairseq-train makes of --bf16: a training on a TPU (fairseq issue #4696).

    Raises:
        RefusalError: if a GPU that is not there shall be profiled: fairseq-train starts its
            profiler before anything else of the plugin is asked.
    """
    if safe_getattr(args, "bf16", False):
        args.tpu = False
    if safe_getattr(args, "profile", False) and not torch.cuda.is_available():
        raise RefusalError("--profile needs a GPU: remove it")


@register_model_architecture("pkm_roberta", "pkm_roberta")
def pkm_roberta_architecture(args):
    """RoBERTa's own sizes; no memory until --pkm-layers names its layers."""
    _check_device(args)
    base_architecture(args)


@register_model_architecture("pkm_roberta", "pkm_roberta_base")
def pkm_roberta_base_architecture(args):
    """roberta_base with memory at two of its 12 layers."""
    args.pkm_layers = safe_getattr(args, "pkm_layers", [4, 8])
    _check_device(args)
    roberta_base_architecture(args)


@register_model_architecture("pkm_roberta", "pkm_roberta_large")
def pkm_roberta_large_architecture(args):
    """roberta_large with memory at two of its 24 layers."""
    args.pkm_layers = safe_getattr(args, "pkm_layers", [8, 16])
    _check_device(args)
    roberta_large_architecture(args)
