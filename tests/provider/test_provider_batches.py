"""Batches of the stand-in, end to end through the SDKs."""

from __future__ import annotations

import asyncio
import json

import anthropic
import openai
import pytest
from provider_clients import PAIR, complete, message, with_anthropic, with_openai

SECONDS = 0.1


def lines(count, **body):
    asked = {"model": "gpt-4o", "max_tokens": 1, "logprobs": True, "top_logprobs": 20, **body}
    return [
        {
            "custom_id": f"row-{k}",
            "method": "POST",
            "url": "/v1/chat/completions",
            "body": {**asked, "messages": [{"role": "user", "content": f"{k}. {PAIR}"}]},
        }
        for k in range(count)
    ]


def asked(count, **params):
    return [
        {
            "custom_id": f"row-{k}",
            "params": {
                "model": "claude-sonnet",
                "max_tokens": 5,
                "messages": [{"role": "user", "content": f"{k}. {PAIR}"}],
                **params,
            },
        }
        for k in range(count)
    ]


def read(content):
    return [json.loads(line) for line in content.splitlines()]


def openai_batch(it, rows, *, cancel=False, **settings):
    """The batch at its end with the rows of its output and of its errors, and the statuses on the way."""
    it.control(**{"batch_seconds": SECONDS, **settings})

    async def work(client):
        content = "\n".join(json.dumps(row) for row in rows).encode()
        file = await client.files.create(file=("rows.jsonl", content), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h", metadata={"job": "a"}
        )
        statuses = [batch.status]
        while batch.status not in ("completed", "failed", "expired", "cancelled"):
            await asyncio.sleep(0.02)
            batch = await client.batches.retrieve(batch.id)
            statuses.append(batch.status)
            if cancel and batch.status == "in_progress":
                assert (await client.batches.cancel(batch.id)).status == "cancelling"
        files = (batch.output_file_id, batch.error_file_id)
        found = [(await client.files.content(identity)).content if identity else b"" for identity in files]
        return batch, *found, statuses

    return with_openai(it, work)


def message_batch(it, requests, *, cancel=False, **settings):
    """The batch at its end with its results."""
    it.control(**{"batch_seconds": SECONDS, **settings})

    async def work(client):
        batch = await client.messages.batches.create(requests=requests)
        assert batch.processing_status == "in_progress"
        assert batch.request_counts.processing == len(requests)
        if cancel:
            await asyncio.sleep(SECONDS / 2)
            assert (await client.messages.batches.cancel(batch.id)).processing_status == "canceling"
        while batch.processing_status != "ended":
            await asyncio.sleep(0.02)
            batch = await client.messages.batches.retrieve(batch.id)
        return batch, [each async for each in await client.messages.batches.results(batch.id)]

    return with_anthropic(it, work)


class TestOpenAI:
    def test_from_file_to_answers(self, it):
        batch, output, errors, statuses = openai_batch(it, lines(20))
        order = ["validating", "in_progress", "finalizing", "completed"]
        assert statuses == sorted(statuses, key=order.index)
        assert (statuses[0], statuses[-1]) == ("validating", "completed")
        rows = read(output)
        assert errors == b""
        assert (batch.request_counts.total, batch.request_counts.completed) == (20, 20)
        assert (batch.metadata, batch.model) == ({"job": "a"}, "gpt-4o")
        assert batch.usage.input_tokens == sum(row["response"]["body"]["usage"]["prompt_tokens"] for row in rows)
        names = [row["custom_id"] for row in rows]
        assert sorted(names) == sorted(f"row-{k}" for k in range(20))
        assert names != [f"row-{k}" for k in range(20)]
        body = next(row["response"]["body"] for row in rows if row["custom_id"] == "row-3")
        same = complete(it, f"3. {PAIR}", max_tokens=1, logprobs=True, top_logprobs=20)
        assert body["choices"] == same.to_dict()["choices"]
        assert it.seen()["asked_again"] == 1

    def test_rows_that_are_refused_stand_in_the_error_file(self, it):
        rows = lines(3)
        rows[1]["body"]["top_logprobs"] = 99
        batch, output, errors, _ = openai_batch(it, rows)
        (error,) = read(errors)
        assert (error["custom_id"], error["response"]["status_code"], error["error"]) == ("row-1", 400, None)
        assert error["response"]["body"]["error"]["code"] == "integer_above_max_value"
        assert (len(read(output)), batch.request_counts.failed) == (2, 1)

    @pytest.mark.parametrize(
        ("change", "code", "line"),
        [
            (lambda rows: rows[2].update(custom_id="row-0"), "duplicate_custom_id", 3),
            (lambda rows: rows[1]["body"].update(model="gpt-4.1"), "mismatched_model", 2),
            (lambda rows: rows[1].pop("custom_id"), "missing_required_parameter", 2),
            (lambda rows: rows[0].update(url="/v1/embeddings"), "mismatched_endpoint", 1),
            (lambda rows: rows.extend(lines(5)[3:]), "too_many_requests", None),
        ],
    )
    def test_wrong_files_fail(self, it, change, code, line):
        rows = lines(3)
        change(rows)
        batch, *_ = openai_batch(it, rows, max_batch_requests=4)
        assert batch.status == "failed"
        assert [(each.code, each.line) for each in batch.errors.data] == [(code, line)]

    def test_limits_of_bytes_and_of_tokens(self, it):
        with pytest.raises(openai.BadRequestError, match="File is too large"):
            openai_batch(it, lines(3), max_batch_bytes=100)
        batch, *_ = openai_batch(it, lines(3), max_batch_bytes=0, max_enqueued_tokens=20)
        assert batch.errors.data[0].code == "token_limit_exceeded"

    def test_canceled_batches_keep_what_is_done(self, it):
        batch, output, errors, _ = openai_batch(it, lines(20), cancel=True, batch_seconds=0.5)
        assert batch.status == "cancelled"
        done, rest = read(output), read(errors)
        assert len(done) + len(rest) == 20
        assert {row["error"]["code"] for row in rest} == {"batch_cancelled"}

    def test_expired_batches_keep_what_is_done(self, it):
        batch, output, errors, _ = openai_batch(it, lines(20), faults={"batch_expired": 1})
        assert batch.status == "expired"
        assert len(read(output)) == 10
        assert {row["error"]["code"] for row in read(errors)} == {"batch_expired"}

    def test_rows_go_wrong_one_by_one(self, it):
        rates = dict.fromkeys(("row_missing", "row_duplicated", "row_expired", "row_errored"), 0.15)
        _, output, errors, _ = openai_batch(it, lines(60), faults={**rates, "row_unknown_id": 0.1, "nan": 0.1})
        names = [row["custom_id"] for row in read(output)]
        faults = it.seen()["faults"]
        assert set(faults) == {*rates, "row_unknown_id", "nan"}
        assert len(names) - len(set(names)) == faults["row_duplicated"]
        assert sum(name.startswith("unknown-") for name in names) == faults["row_unknown_id"]
        assert len({*names, *(row["custom_id"] for row in read(errors))}) == 60 - faults["row_missing"]
        assert {row["error"] and row["error"]["code"] for row in read(errors)} == {None, "batch_expired"}
        assert output.count(b"NaN") > 0
        wrong = sum(faults.values()) - faults["row_duplicated"]
        assert it.seen()["answered_distinct"] == 60 - wrong

    def test_results_can_end_in_the_middle_of_a_line(self, it):
        _, output, _, _ = openai_batch(it, lines(4), faults={"batch_truncated": 1})
        whole, _, last = output.rpartition(b"\n")
        assert len(read(whole)) == 2
        with pytest.raises(ValueError, match="line 1"):
            json.loads(last)
        assert it.seen()["answered_distinct"] == 2

    def test_files_and_batches_are_listed_and_deleted(self, it):
        batch, *_ = openai_batch(it, lines(2))
        openai_batch(it, lines(2))

        async def work(client):
            page = await client.batches.list(limit=1)
            assert page.has_more
            assert [page.data[0].id, *[each.id async for each in client.batches.list(limit=1)]][2] == batch.id
            assert (await client.files.retrieve(batch.input_file_id)).purpose == "batch"
            assert (await client.files.delete(batch.input_file_id)).deleted
            with pytest.raises(openai.NotFoundError):
                await client.files.content(batch.input_file_id)
            with pytest.raises(openai.ConflictError):
                await client.batches.cancel(batch.id)

        with_openai(it, work)


class TestAnthropic:
    def test_from_requests_to_answers(self, it):
        requests = asked(20)
        requests[4]["params"]["temperature"] = 1
        batch, results = message_batch(it, requests)
        assert (batch.request_counts.succeeded, batch.request_counts.errored) == (19, 1)
        assert [each.custom_id for each in results] != [each["custom_id"] for each in requests]
        found = {each.custom_id: each.result for each in results}
        assert len(found) == 20
        assert found["row-4"].error.error.type == "invalid_request_error"
        assert found["row-3"].message.content == message(it, f"3. {PAIR}").content

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["a b"], "String should match pattern"),
            (["x" * 65], "at most 64 characters"),
            (["a", "a"], "must be unique"),
            (["a", "b", "c"], "at most 2 items"),
        ],
    )
    def test_wrong_requests_are_refused(self, it, names, said):
        requests = [{**each, "custom_id": name} for each, name in zip(asked(3), names, strict=False)]
        with pytest.raises(anthropic.BadRequestError, match=said):
            message_batch(it, requests, max_batch_requests=2)

    def test_large_requests_are_refused(self, it):
        with pytest.raises(anthropic.ContentTooLargeError) as caught:
            message_batch(it, asked(3), max_batch_bytes=100)
        assert caught.value.type == "request_too_large"

    def test_canceled(self, it):
        batch, results = message_batch(it, asked(20), cancel=True, batch_seconds=0.4)
        kinds = [each.result.type for each in results]
        assert set(kinds) == {"succeeded", "canceled"}
        assert batch.request_counts.canceled == kinds.count("canceled")

    def test_rows_and_batches_go_wrong(self, it):
        _, results = message_batch(it, asked(40), faults={"row_errored": 0.3, "row_expired": 0.3, "row_missing": 0.2})
        assert {each.result.type for each in results} == {"succeeded", "errored", "expired"}
        assert len(results) == 40 - it.seen()["faults"]["row_missing"]
        batch, _ = message_batch(it, asked(10), faults={"batch_expired": 1})
        assert (batch.request_counts.succeeded, batch.request_counts.expired) == (5, 5)
        with pytest.raises(ValueError, match="line 1"):
            message_batch(it, asked(4), faults={"batch_truncated": 1})

    def test_batches_are_listed(self, it):
        first, _ = message_batch(it, asked(1))
        second, _ = message_batch(it, asked(1))

        async def work(client):
            return [each.id async for each in client.messages.batches.list(limit=1)]

        assert with_anthropic(it, work)[:2] == [second.id, first.id]
