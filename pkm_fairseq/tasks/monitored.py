"""Figures that are logged once for each validation set, those of memory usage among them."""

import logging
import math
import os
from contextlib import ExitStack
from functools import partial
from itertools import chain, takewhile
from math import ceil

import torch.distributed as dist
from fairseq import utils
from fairseq.logging import metrics
from fairseq.tasks import FairseqTask

from pkm_fairseq.usage.monitor import UsageMonitor, first_examples
from pkm_fairseq.usage.worth import Worth, spread_batches

from .binary_text import check_binary_text, check_dictionary

logger = logging.getLogger(__name__)


class MonitoredTask(FairseqTask):
    """Logs figures over whole validation sets; of memory usage if the criterion asks for them.

    A criterion asks with its options as ``usage_config``. The figures are metrics that fairseq
    computes when it asks for them, at the end for the whole set, so they can be the
    ``--best-checkpoint-metric``; they leave nothing in checkpoints.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.monitor = UsageMonitor()
        self.worth = Worth()
        self._usage = None  # the criterion's options, if it asks for figures of usage
        self._pictures = None
        self._figures_logged = False
        self._figures = None

    @classmethod
    def setup_task(cls, cfg, **options):
        """Reads the dictionaries, as fairseq's task.

        Raises:
            RefusalError: if one cannot be read, naming where it is.
        """
        for place in ("", "input0", "label"):  # of one task's, and of the other's
            check_dictionary(os.path.join(utils.split_paths(cfg.data)[0], place, "dict.txt"))
        return super().setup_task(cfg, **options)

    def load_dataset(self, split, epoch=1, combine=False, **options):
        """Same as in fairseq's task, once the files were checked.

        Raises:
            RefusalError: if they are cut off or not of this dictionary.
        """
        folders = utils.split_paths(self.cfg.data)
        self.check_data(folders[(epoch - 1) % len(folders)], split)
        super().load_dataset(split, epoch=epoch, combine=combine, **options)

    def check_data(self, folder, split):
        """Refuses what cannot be read of a split in a folder."""
        check_binary_text(os.path.join(folder, split), self.source_dictionary)

    def build_criterion(self, cfg, *args, **options):
        criterion = super().build_criterion(cfg, *args, **options)
        self._usage = getattr(criterion, "usage_config", None)
        if self._usage is not None:
            self.monitor = UsageMonitor(self._usage.pkm_usage_per_head)
            if self._usage.tensorboard_logdir and (
                not dist.is_initialized() or dist.get_rank() == 0
            ):
                # Only who draws needs matplotlib.
                from pkm_fairseq.usage.plots import UsageWriter

                self._pictures = UsageWriter(self._usage.tensorboard_logdir)
        return criterion

    def get_batch_iterator(self, dataset, **options):
        """Same as in fairseq's task; here a validation set begins.

        If figures are asked for, the batches of a validation set are not made multiples of
        ``--required-batch-size-multiple``: some builds of fairseq leave out the rows that fill no
        multiple, and the figures are to be those of the whole set.
        """
        name = next((name for name, known in self.datasets.items() if known is dataset), None)
        self._figures_logged = False
        self._figures = None
        if self._usage is None:
            return super().get_batch_iterator(dataset, **options)
        if name != self._usage.train_subset:
            options["required_batch_size_multiple"] = 1
        batches = super().get_batch_iterator(dataset, **options)
        self._begin_set(name, batches, options.get("shard_id", 0), options.get("num_shards", 1))
        return batches

    def _begin_set(self, name, batches, worker, workers):
        # fairseq fills up the other workers' shards with the first batch of the first worker.
        others = batches.frozen_batches[:1] if worker else ()
        examples = first_examples(batches, self._usage.pkm_drift_tokens)
        of_these = takewhile(lambda batch: not examples.isdisjoint(batch), batches.frozen_batches)
        drift_steps = ceil(len(list(of_these)) / workers)
        self.monitor.begin_set(name, examples, chain.from_iterable(others), drift_steps)
        steps = self._usage.max_valid_steps
        within = None if steps is None else steps * workers
        chosen = spread_batches(batches, self._usage.pkm_worth_tokens, within)
        self.worth.begin_set(chosen, worker, workers)

    def train_step(self, sample, model, criterion, optimizer, update_num, ignore_grad=False):
        with ExitStack() as around:
            if ignore_grad and hasattr(model, "not_counting"):
                around.enter_context(model.not_counting())
            if self._usage is not None:
                around.enter_context(self.monitor.watch_training(model, counted=not ignore_grad))
            return super().train_step(sample, model, criterion, optimizer, update_num, ignore_grad)

    def optimizer_step(self, optimizer, model, update_num):
        """Moves the parameters; what workers have counted for themselves they then share.

        So each of them validates the same model, and any may save it.
        """
        super().optimizer_step(optimizer, model, update_num)
        if hasattr(model, "average_query_statistics"):
            model.average_query_statistics()

    def valid_step(self, sample, model, criterion):
        """Same as in fairseq's task, for figures of worth more than once."""
        self._figures = None
        again = partial(super().valid_step, sample, model, criterion)
        if self._usage is None:
            return again()

        def run():
            with self.monitor.watch_validation(model, sample, self.source_dictionary.pad()):
                return again()

        return self.worth.measure(model, run, again)

    def begin_valid_epoch(self, epoch, model):
        super().begin_valid_epoch(epoch, model)
        self.monitor.end_window()

    def compute_figures(self):
        """Returns the figures of the validation set so far, by the name under which to log them."""
        return {**self.worth.figures(), **self.monitor.figures()}

    def figures(self):
        """Returns what ``compute_figures`` does, computed once however often fairseq asks."""
        if self._figures is None:
            self._figures = self.compute_figures()
        return self._figures

    def reduce_metrics(self, logging_outputs, criterion):
        """Logs what the criterion logs and, in validation, the figures."""
        super().reduce_metrics(logging_outputs, criterion)
        if criterion.training:
            return
        # Once a set: what a batch logs fairseq computes at once, and again at the set's end.
        names = ()
        if not self._figures_logged:
            names = self.figures()
        elif self.worth.just_began:  # they are not there before
            names = self.worth.figures()
        self._figures_logged = True
        for name in names:
            metrics.log_derived(name, lambda meters, name=name: self.figures()[name])

    def post_validate(self, model, stats, agg):
        """Ends the set, which fairseq does only in training, and draws its usage."""
        not_finite = [name for name, value in stats.items() if not math.isfinite(value)]
        if not_finite:
            logger.warning(
                "%s: not a finite number: %s; by such a metric no checkpoint is the best",
                *(self.monitor.name, ", ".join(not_finite)),
            )
        counts = self.monitor.counts()
        self.monitor.end_set()
        if self._pictures:
            self._pictures.write(self.monitor.name, counts, stats["num_updates"])
