"""scikit-learn's callbacks, told of every step of a training. They came with scikit-learn 1.9; knows no torch."""

import copy

import sklearn

try:
    from sklearn.callback import CallbackSupportMixin
except ImportError:  # scikit-learn < 1.9

    class CallbackSupportMixin:
        """What stands in for scikit-learn's mixin where there is none."""

        def set_callbacks(self, *callbacks):
            """Refuse callbacks, which this version of scikit-learn does not know.

            Parameters
            ----------
            *callbacks : callback instances
                See scikit-learn 1.9.

            Raises
            ------
            ImportError
                Always.
            """
            raise ImportError(
                f"Callbacks need scikit-learn 1.9 or newer, but this is {sklearn.__version__}. Update scikit-learn "
                "(pip install -U scikit-learn), or set verbose=1 for a progress bar."
            )


class Steps:
    """The steps of a fit, as scikit-learn's callbacks see them: tasks 0, 1, ... below the task that is the fit.

    `owner` is the estimator the callbacks are set on. ``attributes_of(attributes)`` turns fitted attributes of whatever
    runs the steps into those of the owner.
    """

    def __init__(self, owner, views, max_iter, attributes_of=lambda attributes: attributes):
        self.owner, self.attributes_of = owner, attributes_of
        self.about = {"estimator": owner, "X": views.X, "y": views.Y, "metadata": {"paired_idx": views.pairs}}
        self.fit = owner._init_callback_context(max_subtasks=max_iter)  # public to developers in spite of its name
        self.fit.call_on_fit_task_begin(**self.about)

    @classmethod
    def of(cls, owner, *args, **kwargs):
        """The steps of an estimator's fit, or None if nobody listens: then a fit does nothing for callbacks."""
        # where `set_callbacks`, `clone` and searches leave them
        return cls(owner, *args, **kwargs) if getattr(owner, "_skl_callbacks", None) else None

    def begin(self):
        """A step begins."""
        self.step = self.fit.subcontext(task_name="step")
        self.step.call_on_fit_task_begin(**self.about)

    def end(self, record, attributes):
        """A step has ended, after which the fitted attributes would be ``attributes()``; whether to stop here."""
        # for callbacks that watch the loss: a fitted copy, which has it too, costs more than many a step
        self.owner.loss_curve_, self.owner.n_iter_ = record.curves, record.n_iter
        return self.step.call_on_fit_task_end(
            **self.about, reconstruction_attributes=lambda: self.attributes_of(attributes())
        )

    def close(self):
        """The fit has ended; the owner has its fitted attributes."""
        self.fit.call_on_fit_task_end(**self.about, reconstruction_attributes={})


def with_attributes(estimator, attributes):
    """A copy of an estimator with further attributes."""
    changed = copy.copy(estimator)
    vars(changed).update(attributes)
    return changed
