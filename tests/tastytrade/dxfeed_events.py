"""dxFeed events as the venue sends them: values by field name, to be laid out by the channel."""

import itertools
from typing import Any, Final

Event = dict[str, Any]

_numbers: Final = itertools.count(1)


def index_of(time_ms: int, sequence: int) -> int:
    return (time_ms // 1_000) << 32 | (time_ms % 1_000) << 22 | sequence & 0x3FFFFF


def time_and_sale(symbol: str, time_ms: int, sequence: int | None = None, **fields: Any) -> Event:
    sequence = next(_numbers) if sequence is None else sequence
    return {
        "eventSymbol": symbol,
        "eventTime": 0,
        "eventFlags": 0,
        "index": index_of(time_ms, sequence),
        "time": time_ms,
        "timeNanoPart": 0,
        "sequence": sequence,
        "exchangeCode": "G",
        "price": 21_000.25,
        "size": 1.0,
        "bidPrice": 21_000.0,
        "askPrice": 21_000.25,
        "tradeThroughExempt": "\x00",
        "aggressorSide": "BUY",
        "spreadLeg": False,
        "extendedTradingHours": False,
        "validTick": True,
        "type": "NEW",
        "buyer": None,
        "seller": None,
        "exchangeSaleConditions": None,
        **fields,
    }


def quote(symbol: str, **fields: Any) -> Event:
    return {
        "eventSymbol": symbol,
        "eventTime": 0,
        "sequence": 0,
        "timeNanoPart": 0,
        "bidTime": 0,
        "bidExchangeCode": "G",
        "askTime": 0,
        "askExchangeCode": "G",
        "bidPrice": 21_000.0,
        "askPrice": 21_000.25,
        "bidSize": 3.0,
        "askSize": 5.0,
        **fields,
    }


def trade(symbol: str, time_ms: int, sequence: int | None = None, **fields: Any) -> Event:
    return {
        "eventSymbol": symbol,
        "eventTime": 0,
        "time": time_ms,
        "timeNanoPart": 0,
        "sequence": next(_numbers) if sequence is None else sequence,
        "exchangeCode": "G",
        "dayId": 20_777,
        "tickDirection": "ZERO_UP",
        "extendedTradingHours": False,
        "price": 21_000.25,
        "change": 0.25,
        "size": 2.0,
        "dayVolume": 123_456.0,
        "dayTurnover": "NaN",
        **fields,
    }


def future(code: str, month: str, expires: str, *, active: bool) -> dict[str, Any]:
    """An item of ``/instruments/futures``; ``month`` as in ``Z6``."""
    return {
        "symbol": f"/{code}{month}",
        "product-code": code,
        "tick-size": "0.25",
        "notional-multiplier": "2.0",
        "display-factor": "0.01",
        "last-trade-date": expires,
        "expiration-date": expires,
        "active": True,
        "active-month": active,
        "next-active-month": not active,
        "is-closing-only": False,
        "stops-trading-at": f"{expires}T13:30:00.000+00:00",
        "expires-at": f"{expires}T13:30:00.000+00:00",
        "product-group": "CME_ES",
        "exchange": "CME",
        "streamer-exchange-code": "XCME",
        "back-month-first-calendar-symbol": True,
        "streamer-symbol": f"/{code}{month[0]}2{month[1]}:XCME",
        "instrument-type": "Future",
    }


def equity(symbol: str, *, is_index: bool) -> dict[str, Any]:
    """An item of ``/instruments/equities``."""
    return {
        "id": 1,
        "symbol": symbol,
        "instrument-type": "Equity",
        "is-index": is_index,
        "description": symbol,
        "lendability": "Easy To Borrow",
        "market-time-instrument-collection": "Equity",
        "is-closing-only": False,
        "is-options-closing-only": False,
        "active": True,
        "is-illiquid": False,
        "is-etf": not is_index,
        "streamer-symbol": symbol,
    }
