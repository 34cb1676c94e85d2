"""The customer's screens, as text."""

from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

Json = Mapping[str, Any]


def rupees(amount: str | None) -> str:
    """`"1234567.50"` → `₹12,34,567.50`: lakh and crore grouping; `—` for what cannot be known."""
    if amount is None:
        return "—"
    value = Decimal(amount)
    whole, _, paise = f"{abs(value):.2f}".partition(".")
    head, tail = whole[:-3], whole[-3:]
    while head:
        head, tail = head[:-2], f"{head[-2:]},{tail}"
    sign = "-" if value < 0 else ""
    return f"{sign}₹{tail}.{paise}"


def _amount(amount: str | None) -> Text:
    negative = amount is not None and Decimal(amount) < 0
    return Text(rupees(amount), style="red" if negative else "green", justify="right")


def accounts(title: str, items: Sequence[Json]) -> RenderableType:
    """Every account on both platforms."""
    table = Table(title=title, box=box.ROUNDED, title_justify="left")
    for name in ("Platform", "Account", "Kind"):
        table.add_column(name)
    table.add_column("Balance", justify="right")
    table.add_column("Available", justify="right")
    for item in sorted(items, key=lambda item: (item["platform"], item["kind"])):
        table.add_row(
            item["platform"].upper(),
            item["platform_account_id"],
            item["kind"].replace("_", " "),
            _amount(item["balance"]),
            _amount(item["available"]),
        )
    return table


def net_worth(answer: Json) -> RenderableType:
    """One net worth over both platforms, with its parts."""
    table = Table.grid(padding=(0, 3))
    table.add_column()
    table.add_column(justify="right")
    for group, parts in (
        ("banking", ("savings", "current", "fixed_deposits")),
        ("trading", ("wallet", "open_positions", "realized_pnl")),
        ("investments", ("fixed_deposits", "mutual_funds")),
        ("liabilities", ("loans",)),
    ):
        figures = answer[group]
        table.add_row(Text(group.capitalize(), style="bold"), _amount(figures["total"]))
        for part in parts:
            label = f"  {part.replace('_', ' ')}"
            if part == "realized_pnl":
                label += " (in the wallet already)"
            table.add_row(Text(label, style="dim"), _amount(figures[part]))
    shares = ", ".join(f"{part['class'].replace('_', ' ')} {part['percent']} %" for part in answer["allocation"])
    total = Text.assemble("Net worth ", (rupees(answer["total"]), "bold green"))
    return Panel(Group(total, "", table, "", Text(f"Allocation: {shares}")), title="One net worth", expand=False)


def notifications(answer: Json) -> RenderableType:
    """The one inbox."""
    lines: list[RenderableType] = []
    for item in answer["items"][:8]:
        actions = " ".join(f"[{action['label']}]" for action in item.get("actions", ()))
        lines.append(
            Text.assemble(
                (f"{item.get('emoji') or '•'} ", ""),
                (item["title"], "bold"),
                (f"  ({item['priority']})", "yellow" if item["priority"] in ("critical", "high") else "dim"),
            )
        )
        lines.append(Text(f"   {item['body']}  {actions}".rstrip(), style="dim"))
    title = f"One inbox, {answer['unread_count']} unread"
    return Panel(Group(*lines), title=title, expand=False)


def search(answer: Json) -> RenderableType:
    """What one search box finds on both platforms."""
    heading = f"Search “{answer['query']}”: {answer['total']} found in {answer['took_ms']} ms"
    table = Table(title=heading, box=box.ROUNDED, title_justify="left")
    for name in ("Score", "Match", "Type", "Platform", "Title"):
        table.add_column(name)
    table.add_column("Amount", justify="right")
    for item in answer["items"][:6]:
        amount = item.get("amount")
        table.add_row(
            str(item["score"]),
            item["match"].replace("_", " "),
            item["type"],
            (item.get("platform") or "sangam").upper(),
            Text.assemble(item["title"], (f"\n{item.get('subtitle') or ''}", "dim")),
            _amount(amount) if amount is not None else Text(""),
        )
    return table
