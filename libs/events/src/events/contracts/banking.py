"""banking: what BFC told us of one customer, in order, on `bank_customer-<uuid5 of BFC id>`.

Published by sync-gateway, one event per feed item. Every struct carries the platform's own item id
and customer id, so that the customer can be found when they link.
"""

from datetime import date, datetime
from typing import Any, Literal

from events.contracts.registry import Event, contract


class BankItem(Event, frozen=True, kw_only=True):
    """What every item of the bank's feed carries."""

    item_id: str
    customer_id: str
    occurred_at: datetime
    sequence: int | None = None


@contract("banking.account.opened", public=False)
class AccountOpened(BankItem, frozen=True, kw_only=True):
    account_id: str
    kind: Literal["savings", "current"]
    currency: str
    opening_balance_minor: int
    name: str | None = None
    sealed_texts: str | None = None
    """The name, sealed for the stream's id (`events.texts`); then it is None itself."""


@contract("banking.transaction.posted", public=False)
class TransactionPosted(BankItem, frozen=True, kw_only=True):
    transaction_id: str
    account_id: str
    direction: Literal["credit", "debit"]
    amount_minor: int
    currency: str
    category: str
    counterparty: str | None = None
    memo: str | None = None
    reference: str | None = None
    sealed_texts: str | None = None
    """Counterparty, memo and reference, sealed for the stream's id (`events.texts`); then they are None themselves."""


@contract("banking.fixed_deposit.opened", public=False)
class FixedDepositOpened(BankItem, frozen=True, kw_only=True):
    deposit_id: str
    account_id: str
    principal_minor: int
    currency: str
    rate_percent: str
    opened_on: date
    matures_on: date


@contract("banking.fixed_deposit.matured", public=False)
class FixedDepositMatured(BankItem, frozen=True, kw_only=True):
    deposit_id: str
    account_id: str
    payout_minor: int
    currency: str | None = None


class Loan(BankItem, frozen=True, kw_only=True):
    """The state of a loan as the bank last stated it."""

    loan_id: str
    kind: str
    principal_minor: int
    outstanding_minor: int
    emi_minor: int
    currency: str
    rate_percent: str


@contract("banking.loan.opened", public=False)
class LoanOpened(Loan, frozen=True, kw_only=True):
    pass


@contract("banking.loan.changed", public=False)
class LoanChanged(Loan, frozen=True, kw_only=True):
    pass


@contract("banking.fund.changed", public=False)
class FundChanged(BankItem, frozen=True, kw_only=True):
    scheme_code: str
    scheme_name: str
    units: str
    """Decimal string: units carry up to four decimals."""
    nav: str
    """Net asset value per unit, decimal string in major units."""
    cost_minor: int
    currency: str
    as_of: date


@contract("banking.kyc.completed", public=False)
class KycCompleted(BankItem, frozen=True, kw_only=True):
    level: str


@contract("banking.credit.approved", public=False)
class CreditApproved(BankItem, frozen=True, kw_only=True):
    product: str
    amount_minor: int
    currency: str


@contract("banking.balance.stated", public=False)
class BalanceStated(BankItem, frozen=True, kw_only=True):
    """What the bank says an account holds: stated to be compared with, it moves nothing."""

    account_id: str
    balance_minor: int
    currency: str
    as_of: datetime
    through_sequence: int | None = None
    """The last of the customer's items that the balance contains."""


@contract("banking.profile.reported", public=False)
class ProfileReported(BankItem, frozen=True, kw_only=True):
    base_version: int
    """The version of the merged profile that the customer saw at the bank when they changed it."""
    changed_at: datetime
    fields: dict[str, Any]
    """In the clear, as it was before fields were sealed; empty since."""
    sealed_fields: str | None = None
    """JSON object of the changed fields, sealed for the platform stream's id (place `profile.fields`)."""
    field_names: tuple[str, ...] = ()
    origin: str | None = None
    """`sangam` where the bank says that it reports back what we told it."""
