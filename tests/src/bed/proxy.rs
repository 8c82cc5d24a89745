//! A TCP proxy whose connections can be cut, stalled and slowed, and restored.
//!
//! It stands between a client and a server that a test started, and knows nothing
//! of what they say to each other.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::free_ports;

/// What happens to bytes on their way.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Weather {
    /// They pass.
    Fair,
    /// Connections stay open and nothing passes, as behind a dead router.
    Stalled,
    /// Each direction of each connection passes so many bytes a second, and every
    /// piece waits `delay`.
    Slow {
        /// How long a piece waits.
        delay: Duration,
        /// How many bytes pass a second.
        bytes_per_second: u32,
    },
    /// Requests to a Kafka broker that are of this kind, by its number in the protocol
    /// (1 `Fetch`, 8 `OffsetCommit`), vanish on their way; all others pass.
    Without(u16),
    /// Connections are closed as soon as they are made.
    Cut,
}

#[derive(Debug, Clone, Copy, PartialEq)]
struct State {
    weather: Weather,
    /// Connections of an earlier era are closed.
    era: u64,
    /// Connections made before the last of so many times are dead for good.
    lost: u64,
}

/// A running proxy. Closes all connections on drop.
#[derive(Debug)]
pub struct Proxy {
    port: u16,
    state: watch::Sender<State>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Proxy {
    /// Starts a proxy on a free port of the loopback interface, to `target`, which
    /// need not listen yet.
    ///
    /// # Panics
    /// When it cannot listen.
    #[must_use]
    pub fn start(target: SocketAddr) -> Self {
        let [port] = free_ports();
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("a free port");
        listener.set_nonblocking(true).expect("a listener that does not block");
        let (state, seen) = watch::channel(State { weather: Weather::Fair, era: 0, lost: 0 });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let serve = move || {
            runtime.block_on(accept(listener, target, seen));
            // Ends the connections with it.
            drop(runtime);
        };
        let thread = std::thread::Builder::new().name("proxy".to_owned()).spawn(serve).expect("a thread");
        Self { port, state, thread: Some(thread) }
    }

    /// Where it listens, on 127.0.0.1.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Changes the weather. [`Weather::Cut`] closes the connections there are.
    pub fn set(&self, weather: Weather) {
        self.state.send_modify(|state| {
            state.weather = weather;
            state.era += u64::from(weather == Weather::Cut);
        });
    }

    /// The connections there are stay open, and nothing ever passes on them again, as
    /// when a router has forgotten them; new ones are taken.
    pub fn lose_connections(&self) {
        self.state.send_modify(|state| state.lost += 1);
    }

    /// Closes the connections there are; new ones are taken.
    pub fn drop_connections(&self) {
        self.state.send_modify(|state| state.era += 1);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        // The loops end when nobody can change the weather any more.
        self.state = watch::channel(State { weather: Weather::Cut, era: 0, lost: 0 }).0;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn accept(listener: std::net::TcpListener, target: SocketAddr, mut seen: watch::Receiver<State>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((client, _)) = accepted else { continue };
                let now = *seen.borrow();
                if now.weather != Weather::Cut {
                    tokio::spawn(connect(client, target, seen.clone(), now));
                }
            }
            changed = seen.changed() => if changed.is_err() { return },
        }
    }
}

async fn connect(client: TcpStream, target: SocketAddr, seen: watch::Receiver<State>, born: State) {
    let Ok(server) = TcpStream::connect(target).await else { return };
    let _ = (client.set_nodelay(true), server.set_nodelay(true));
    let (from_client, to_client) = client.into_split();
    let (from_server, to_server) = server.into_split();
    tokio::select! {
        () = pass(from_client, to_server, seen.clone(), born, Some(Requests::default())) => {}
        () = pass(from_server, to_client, seen, born, None) => {}
    }
}

/// How far a client is with the request that it sends. What is no request to a Kafka
/// broker passes all the same, as long as the weather lets it.
#[derive(Debug, Default)]
struct Requests {
    /// The length and the kind of the request, as far as they have come.
    head: Vec<u8>,
    /// How much of the head has passed.
    passed: usize,
    /// How many bytes are still to come after the head.
    left: usize,
    is_swallowed: bool,
}

impl Requests {
    const HEAD: usize = size_of::<u32>() + size_of::<u16>();

    /// What passes of the next bytes. A request begins and ends wherever it does in them:
    /// several may come in one piece.
    fn let_through(&mut self, weather: Weather, mut piece: &[u8]) -> Vec<u8> {
        let mut through = Vec::with_capacity(Self::HEAD + piece.len());
        while !piece.is_empty() {
            if self.left > 0 {
                let body = piece.split_off(..self.left.min(piece.len())).unwrap_or_default();
                self.left -= body.len();
                through.extend_from_slice(if self.is_swallowed { &[] } else { body });
                continue;
            }
            let missing = Self::HEAD - self.head.len();
            self.head.extend_from_slice(piece.split_off(..missing.min(piece.len())).unwrap_or_default());
            let kind = match *self.head {
                [a, b, c, d, high, low] => {
                    self.left = (u32::from_be_bytes([a, b, c, d]) as usize).saturating_sub(size_of::<u16>());
                    Some(u16::from_be_bytes([high, low]))
                }
                _ => None,
            };
            self.is_swallowed = match weather {
                Weather::Without(unwanted) => self.passed == 0 && kind.is_none_or(|kind| kind == unwanted),
                _ => false,
            };
            if !self.is_swallowed {
                through.extend_from_slice(&self.head[self.passed..]);
                self.passed = self.head.len();
            }
            if kind.is_some() {
                (self.head, self.passed) = (Vec::new(), 0);
            }
        }
        through
    }
}

/// Passes bytes in one direction until either end closes, or the era has ended that
/// the connection was born in.
async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    mut seen: watch::Receiver<State>,
    born: State,
    mut requests: Option<Requests>,
) {
    let mut piece = vec![0; 16 * 1024];
    loop {
        let read = tokio::select! {
            read = from.read(&mut piece) => read,
            changed = seen.changed() => match changed {
                Ok(()) if seen.borrow().era == born.era => continue,
                _ => return,
            },
        };
        let Ok(read @ 1..) = read else { return };
        let weather = seen.borrow().weather;
        let through = match &mut requests {
            Some(requests) => &requests.let_through(weather, &piece[..read]),
            None => &piece[..read],
        };
        if !passes(&mut seen, born, through.len()).await || to.write_all(through).await.is_err() {
            return;
        }
    }
}

/// Waits until so many bytes may pass; false when the era has ended meanwhile.
async fn passes(seen: &mut watch::Receiver<State>, born: State, bytes: usize) -> bool {
    let State { weather, lost, .. } = *seen.borrow();
    if let Weather::Slow { delay, bytes_per_second } = weather
        && lost == born.lost
    {
        let wait = delay + Duration::from_secs(bytes as u64) / bytes_per_second.max(1);
        return tokio::time::timeout(wait, seen.wait_for(|state| state.era != born.era)).await.is_err();
    }
    let calm = |state: &State| state.weather != Weather::Stalled && state.lost == born.lost;
    let calm = seen.wait_for(|state| state.era != born.era || calm(state)).await;
    calm.is_ok_and(|state| state.era == born.era)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::time::Instant;

    use super::*;

    /// A server that sends back what it gets.
    fn echo() -> SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming() {
                let mut connection = connection.unwrap();
                std::thread::spawn(move || {
                    let mut copy = connection.try_clone().unwrap();
                    let _ = std::io::copy(&mut connection, &mut copy);
                });
            }
        });
        address
    }

    fn client(proxy: &Proxy) -> TcpStream {
        let client = TcpStream::connect(proxy.address()).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        client
    }

    fn say(client: &mut TcpStream, words: &[u8]) -> std::io::Result<Vec<u8>> {
        client.write_all(words)?;
        let mut heard = vec![0; words.len()];
        client.read_exact(&mut heard).map(|()| heard)
    }

    #[test]
    fn bytes_pass_until_the_connection_is_cut_and_again_when_it_is_restored() {
        let proxy = Proxy::start(echo());
        let mut first = client(&proxy);
        assert_eq!(say(&mut first, b"hello").unwrap(), b"hello");
        proxy.set(Weather::Cut);
        assert!(say(&mut first, b"anybody?").is_err());
        assert!(say(&mut client(&proxy), b"anybody?").is_err());
        proxy.set(Weather::Fair);
        assert_eq!(say(&mut client(&proxy), b"again").unwrap(), b"again");
    }

    #[test]
    fn dropped_connections_can_be_made_anew_at_once() {
        let proxy = Proxy::start(echo());
        let mut first = client(&proxy);
        assert_eq!(say(&mut first, b"one").unwrap(), b"one");
        proxy.drop_connections();
        assert!(say(&mut first, b"two").is_err());
        assert_eq!(say(&mut client(&proxy), b"three").unwrap(), b"three");
    }

    #[test]
    fn a_stalled_connection_goes_on_where_it_was() {
        let proxy = Proxy::start(echo());
        let mut one = client(&proxy);
        assert_eq!(say(&mut one, b"a").unwrap(), b"a");
        proxy.set(Weather::Stalled);
        one.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        assert!(say(&mut one, b"b").is_err(), "nothing passes");
        proxy.set(Weather::Fair);
        one.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        let mut heard = [0];
        one.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"b");
    }

    #[test]
    fn a_lost_connection_stays_dead_and_a_new_one_is_made() {
        let proxy = Proxy::start(echo());
        let mut one = client(&proxy);
        assert_eq!(say(&mut one, b"a").unwrap(), b"a");
        proxy.lose_connections();
        one.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let error = say(&mut one, b"b").unwrap_err();
        assert!(matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut), "{error}");
        assert_eq!(say(&mut client(&proxy), b"c").unwrap(), b"c");
    }

    #[test]
    fn of_requests_in_whatever_pieces_only_the_unwanted_vanish() {
        let request = |kind: u8, body: &[u8]| [&[0, 0, 0, 2 + body.len() as u8, 0, kind], body].concat();
        let (first, unwanted, last) = (request(12, b"beat"), request(9, b"where?"), request(12, b""));
        let all = [&first[..], &unwanted, &unwanted, &last].concat();
        for size in 1..=all.len() {
            let mut requests = Requests::default();
            let mut pass = |piece| requests.let_through(Weather::Without(9), piece);
            let through: Vec<u8> = all.chunks(size).flat_map(&mut pass).collect();
            assert_eq!(through, [&first[..], &last].concat(), "in pieces of {size}");
        }
        let mut begun = Requests::default();
        assert_eq!(begun.let_through(Weather::Fair, &unwanted[..3]), unwanted[..3]);
        assert_eq!(begun.let_through(Weather::Without(9), &unwanted[3..]), unwanted[3..], "it was on its way");
        assert_eq!(begun.let_through(Weather::Without(9), &unwanted), b"");
    }

    #[test]
    fn a_slow_connection_takes_its_time() {
        let proxy = Proxy::start(echo());
        let mut one = client(&proxy);
        proxy.set(Weather::Slow { delay: Duration::from_millis(100), bytes_per_second: 1 << 20 });
        let begun = Instant::now();
        assert_eq!(say(&mut one, b"slowly").unwrap(), b"slowly");
        assert!(begun.elapsed() >= Duration::from_millis(200), "there and back: {:?}", begun.elapsed());
    }
}
