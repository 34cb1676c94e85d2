"""All guards."""

import of_backbone
import of_gateway
import of_identity
import of_ledger
import of_notifier
import of_search

_OF = (of_backbone, of_gateway, of_identity, of_ledger, of_notifier, of_search)
GUARDS = tuple(guard for module in _OF for guard in module.GUARDS)
