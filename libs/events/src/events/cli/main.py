"""The command's tree: which module gives which command."""

import typer

from events.cli import (
    archive,
    audit,
    consumers,
    dead,
    lag,
    operations,
    parked,
    parked_acts,
    rebuild,
    replay,
    restored,
    retention,
    rewrap,
    show,
    shred,
    stats,
    subscribers,
    tail,
    trace,
    verify,
)

app = typer.Typer(
    name="sangam",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Look into the event log, prove it, replay and rebuild from it, and deal with what failed.",
    epilog="Exit codes: 0 all is well · 1 something was found · 2 wrong usage · 3 cannot connect.",
)

events = typer.Typer(no_args_is_help=True, help="The log itself: follow it, show one event, count, verify the chain.")
events.command()(tail.tail)
events.command()(show.show)
events.command()(stats.stats)
events.command()(verify.verify)
events.command()(archive.archive)
events.command("check-archive")(archive.check_archive)
app.add_typer(events, name="events")

app.command()(lag.lag)
app.command()(trace.trace)

parked_events = typer.Typer(no_args_is_help=True, help="Events that a consumer could not apply, and those behind them.")
parked_events.command("list")(parked.list_parked)
parked_events.command("show")(parked.show_parked)
parked_events.command("retry")(parked_acts.retry)
parked_events.command("skip")(parked_acts.skip)
parked_events.command("skipped")(parked_acts.list_skipped)
app.add_typer(parked_events, name="parked")

app.command()(replay.replay)
app.command()(rebuild.rebuild)
app.command()(shred.shred)
app.command()(rewrap.rewrap)

app.command()(consumers.consumers)

letters = typer.Typer(no_args_is_help=True, help="Messages that nobody could use, or that had no queue to go to.")
letters.command("list")(dead.list_dead)
letters.command()(dead.requeue)
letters.command()(dead.discard)
app.add_typer(letters, name="dead")

outside = typer.Typer(no_args_is_help=True, help="Outside systems that read public events.")
outside.command()(subscribers.add)
outside.command("list")(subscribers.list_subscribers)
outside.command()(subscribers.remove)
app.add_typer(outside, name="subscribers")

app.command()(restored.restored)
app.command()(retention.retention)

under_way = typer.Typer(no_args_is_help=True, help="Rebuilds and replays: list, pause, resume, cancel.")
under_way.command("list")(operations.list_operations)
under_way.command()(operations.pause)
under_way.command()(operations.resume)
under_way.command()(operations.cancel)
app.add_typer(under_way, name="operations")

app.command()(audit.audit)
