"""Samples as the collectors write them: `up` at each reading, and besides only what changed."""

from servescope.collect.prometheus import parse_page
from servescope.records import Sample
from servescope.telemetry import read

PAGE = "prometheus:127.0.0.1:8000/metrics"


def told(readings, source=PAGE):
    """The samples of (time in s, values by name and labels) pairs; a failed reading's are None."""
    samples, before = [], {}
    for t_s, values in readings:
        t_ns = round(t_s * 1e9)
        samples.append(Sample(t_ns=t_ns, source=source, name="up", value=float(values is not None)))
        for (name, labels), value in (values or {}).items():
            if before.get((name, labels)) != value:
                before[name, labels] = value
                samples.append(
                    Sample(t_ns=t_ns, source=source, name=name, value=value, labels=dict(labels))
                )
    return samples


def page(text):
    """The values of a page of metrics, by name and labels."""
    lines = "\n".join(line.strip() for line in text.strip().splitlines())
    readings, bad_lines = parse_page(lines + "\n")
    assert bad_lines == 0
    return {(one.name, tuple(sorted(one.labels.items()))): one.value for one in readings}


def pages(*texts, source=PAGE):
    """What pages of metrics tell, one a second; None for one that could not be read."""
    readings = [(t_s, None if text is None else page(text)) for t_s, text in enumerate(texts)]
    return read(told(readings, source))


def last(telemetry, name, **labels):
    """The last value of the only series of that name with these labels."""
    found = [
        one
        for one in telemetry.named(name)
        if all(one.labels.get(label) == text for label, text in labels.items())
    ]
    assert len(found) == 1, f"{name}: {[dict(one.labels) for one in found]}"
    return found[0].value[-1]
