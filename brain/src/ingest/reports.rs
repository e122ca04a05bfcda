//! The report streams of one session: reports in, acknowledgements out, each after its sync.
//!
//! An agent has two: what it measures now, and what its spool kept while it was not connected. They are served alike and side by side, so
//! that neither waits for the other; the agent gives the live one priority. Acknowledgements keep the order of their stream.

use super::close::{CloseCode, Ending};
use super::framing;
use super::session::SessionContext;
use crate::store::{INTEGER_MAX, Receipt};
use gnomon_common::wire::{AgentEpoch, HostId, Report, ReportAck};
use quinn::{Connection, RecvStream, SendStream};
use tokio::sync::mpsc;

/// Reports of one stream between receipt and sync. Enough to fill a batch after a reconnect; the rest waits in QUIC's
/// window and the spool.
const IN_FLIGHT_MAX: usize = 16;

/// Serves both report streams until one fails; ends well only with the connection.
pub(super) async fn serve(
    connection: &Connection,
    context: &SessionContext,
    host: &HostId,
    epoch: AgentEpoch,
) -> Ending {
    tokio::select! {
        ending = serve_one(connection, context, host, epoch) => ending,
        ending = serve_one(connection, context, host, epoch) => ending,
    }
}

/// Serves the next stream that the agent opens.
async fn serve_one(connection: &Connection, context: &SessionContext, host: &HostId, epoch: AgentEpoch) -> Ending {
    let (send, recv) = match connection.accept_bi().await {
        Ok(streams) => streams,
        Err(error) => return Ending::new(CloseCode::Done, error.to_string()),
    };
    let (waiting, synced) = mpsc::channel(IN_FLIGHT_MAX);
    let (received, acknowledged) =
        tokio::join!(receive(recv, context, host, epoch, waiting), acknowledge(send, context, synced));
    match (received, acknowledged) {
        (Err(ending), _) | (Ok(()), Err(ending)) => ending,
        (Ok(()), Ok(())) => Ending::new(CloseCode::Done, "the agent ended a report stream"),
    }
}

async fn receive(
    mut stream: RecvStream,
    context: &SessionContext,
    host: &HostId,
    epoch: AgentEpoch,
    waiting: mpsc::Sender<(ReportAck, Receipt)>,
) -> Result<(), Ending> {
    while let Some(payload) = framing::read_payload(&mut stream).await? {
        context.metrics.report(payload.len());
        let report: Report = framing::decode(&payload)?;
        check(&report, host, epoch)?;
        let ack = ReportAck { epoch: report.epoch, sequence: report.sequence };
        let place = context.place().await?;
        let receipt = context.journal.report(report, payload, place).await.map_err(SessionContext::stopping)?;
        if waiting.send((ack, receipt)).await.is_err() {
            // The other half has the reason.
            return Ok(());
        }
    }
    Ok(())
}

/// A report speaks for the connection's host, of this life of the agent or (from its spool) an earlier one.
fn check(report: &Report, host: &HostId, epoch: AgentEpoch) -> Result<(), Ending> {
    let malformed = |reason| Err(Ending::new(CloseCode::Malformed, reason));
    if report.host != *host {
        return Err(Ending::new(
            CloseCode::Identity,
            format!("host {host} sent a report that claims to be of host {}", report.host),
        ));
    }
    if report.epoch > epoch {
        return malformed(format!("a report of epoch {} in a connection of epoch {}", report.epoch.0, epoch.0));
    }
    if report.sequence.0 == 0 || report.sequence.0 > INTEGER_MAX {
        return malformed(format!("report sequence {} is out of range", report.sequence.0));
    }
    Ok(())
}

async fn acknowledge(
    mut stream: SendStream,
    context: &SessionContext,
    mut synced: mpsc::Receiver<(ReportAck, Receipt)>,
) -> Result<(), Ending> {
    while let Some((ack, receipt)) = synced.recv().await {
        receipt.await.map_err(|_| SessionContext::stopping(crate::store::Stopped))?;
        framing::write(&mut stream, &ack).await?;
        context.metrics.acknowledged();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use gnomon_common::time::Timestamp;
    use gnomon_common::wire::{HostWindow, Losses, Sequence};

    fn report(host: &str, epoch: u64, sequence: u64) -> Report {
        Report {
            host: HostId::new(host).unwrap(),
            epoch: AgentEpoch(epoch),
            sequence: Sequence(sequence),
            start: Timestamp::default(),
            window_ms: 1000,
            host_window: HostWindow::default(),
            vms: Vec::new(),
            inventory_complete: true,
            losses: Losses::default(),
        }
    }

    #[test]
    fn a_report_of_another_host_or_a_later_life_or_without_a_number_is_refused() {
        let host = HostId::new("a").unwrap();
        let code = |report| check(&report, &host, AgentEpoch(2)).map_err(|ending| ending.code);
        assert_eq!(code(report("a", 2, 1)), Ok(()));
        assert_eq!(code(report("a", 1, 9)), Ok(()));
        assert_eq!(code(report("b", 2, 1)), Err(CloseCode::Identity));
        assert_eq!(code(report("a", 3, 1)), Err(CloseCode::Malformed));
        assert_eq!(code(report("a", 2, 0)), Err(CloseCode::Malformed));
        assert_eq!(code(report("a", 2, u64::MAX)), Err(CloseCode::Malformed));
    }
}
