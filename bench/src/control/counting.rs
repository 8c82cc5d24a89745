//! A proxy that counts the HTTP/1.1 requests of one client.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::task::AbortOnDropHandle;

/// The end of a request's first line. Nothing else that the engines send holds it.
const MARK: &[u8] = b" HTTP/1.1\r\n";

/// A proxy that counts requests; gone when it is dropped.
pub struct Counting {
    address: SocketAddr,
    requests: Arc<AtomicU64>,
    _accepting: AbortOnDropHandle<()>,
}

impl Counting {
    /// Passes on what comes to a server at a port of this machine.
    ///
    /// # Errors
    /// When there is no port for it.
    pub async fn start(server: u16) -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let address = listener.local_addr()?;
        let requests = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&requests);
        let accepting = tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let counter = Arc::clone(&counter);
                tokio::spawn(async move {
                    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
                    let _ = (client.set_nodelay(true), server.set_nodelay(true));
                    let ((from_client, to_client), (from_server, to_server)) =
                        (client.into_split(), server.into_split());
                    // Whichever side ends ends both.
                    tokio::select! {
                        () = pass(from_client, to_server, Some(&counter)) => {}
                        () = pass(from_server, to_client, None) => {}
                    }
                });
            }
        });
        Ok(Self { address, requests, _accepting: AbortOnDropHandle::new(accepting) })
    }

    /// Its URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// How many requests there were.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

async fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, counter: Option<&AtomicU64>) {
    let mut buffer = vec![0; 64 << 10];
    // The end of what was passed on before: a mark may be cut in two.
    let mut tail: Vec<u8> = Vec::new();
    while let Ok(length @ 1..) = from.read(&mut buffer).await {
        if let Some(counter) = counter {
            tail.extend_from_slice(&buffer[..length]);
            let marks = tail.windows(MARK.len()).filter(|window| *window == MARK).count();
            counter.fetch_add(marks as u64, Ordering::Relaxed);
            tail.drain(..tail.len().saturating_sub(MARK.len() - 1));
        }
        if to.write_all(&buffer[..length]).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests may")]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn requests_are_counted_also_those_cut_in_two() {
        let echo = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let proxy = Counting::start(echo.local_addr().unwrap().port()).await.unwrap();
        let mut client = TcpStream::connect(proxy.address).await.unwrap();
        let (mut server, _) = echo.accept().await.unwrap();
        let mut heard = [0; 64];
        for part in ["GET /a HTTP/1.1\r\n\r\nPUT /b HTTP", "/1.1\r\n\r\n"] {
            client.write_all(part.as_bytes()).await.unwrap();
            server.read_exact(&mut heard[..part.len()]).await.unwrap();
        }
        let end = std::time::Instant::now() + Duration::from_secs(60);
        while proxy.requests() < 2 {
            assert!(std::time::Instant::now() < end);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        assert_eq!(proxy.requests(), 2);
    }
}
