"""`configs/demo.py` with scheduled losses; add `:smoke` for a short test run.

python run.py --config=configs/demo_dice_warm_up.py --workdir=runs/demo_dice_warm_up

The weight of soft Dice rises from 0 to 1 in the first 300 steps, and the gamma of the
focal loss falls from 2 to 0 over the whole run. The weight of a loss, and each
hyperparameter that `segloss.losses.scalars_of` lists, can be such a schedule by step
instead of a number. See docs/choosing_a_loss.md.
"""

from ml_collections import ConfigDict

from configs import demo


def get_config(size: str = "full") -> ConfigDict:
    warm_up_steps = 2 if size == "smoke" else 300
    loss = [
        dict(
            name="focal_loss",
            # Over the whole run, because no number of steps is given.
            gamma=dict(name="cosine", init_value=2.0, end_value=0.0),
        ),
        dict(
            name="soft_dice",
            classes="present",
            weight=dict(
                name="linear",
                init_value=0.0,
                end_value=1.0,
                transition_steps=warm_up_steps,
            ),
        ),
    ]
    return demo.get_config(size, loss)
