//! Connections: how many there may be, how long each may take and how much it may send. What comes
//! beyond is refused without being read.

use std::{
    io::{Read as _, Write as _},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use axum::Router;
use hyper::{
    Request, body::Incoming, server::conn::http1, service::Service as _, service::service_fn,
};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    time::{sleep, timeout},
};

use super::{guard::Guard, patient::Patient, question::SECONDS_MAX};

/// How long a client may take to send its request, or wait with the next one.
const REQUEST: Duration = Duration::from_secs(10);

/// How long a client may take nothing of its answer.
const ANSWER: Duration = Duration::from_secs(30);

/// After this a connection takes no further request.
const AGE: Duration = Duration::from_secs(300);

/// For how long the last one may be answered then: the longest profile and its way to the client.
const LAST: Duration = Duration::from_secs(SECONDS_MAX as u64 + 120);

/// Most bytes of a request's line and headers, and of an answer's part on its way. hyper takes no less
/// than 8192.
const BUFFER: usize = 16 << 10;

/// Most headers of a request.
const HEADERS: usize = 64;

/// After a connection could not be taken, for want of file descriptors, say.
const PAUSE: Duration = Duration::from_millis(10);

const FULL: &[u8] = b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\n\
    retry-after: 1\r\ncontent-length: 36\r\nconnection: close\r\n\r\ntoo many connections: try again soon";

/// What answers on a listener.
pub(super) struct Site {
    router: TowerToHyperService<Router>,
    /// Whom it answers; without one, everybody.
    guard: Option<Guard>,
    room: Arc<Semaphore>,
}

impl Site {
    pub(super) fn new(router: Router, guard: Option<Guard>, connections: usize) -> Arc<Site> {
        Arc::new(Site {
            router: TowerToHyperService::new(router),
            guard,
            room: Arc::new(Semaphore::new(connections)),
        })
    }

    /// Answers for ever; counts those that found no room.
    pub(super) async fn serve(self: Arc<Self>, listener: TcpListener, refused: Arc<AtomicU64>) {
        loop {
            let Ok((stream, _)) = listener.accept().await else {
                sleep(PAUSE).await;
                continue;
            };
            let Ok(permit) = Arc::clone(&self.room).try_acquire_owned() else {
                refused.fetch_add(1, Relaxed);
                refuse(stream);
                continue;
            };
            let site = Arc::clone(&self);
            tokio::spawn(async move {
                site.talk(stream).await;
                drop(permit);
            });
        }
    }

    async fn talk(&self, stream: TcpStream) {
        let Ok(local) = stream.local_addr() else {
            return;
        };
        let service = service_fn(|request: Request<Incoming>| async move {
            match self
                .guard
                .as_ref()
                .map(|guard| guard.check(&request, local.ip()))
            {
                Some(Err(refusal)) => Ok(axum::response::IntoResponse::into_response(refusal)),
                _ => self.router.call(request).await,
            }
        });
        // A client that has gone away is noticed while its answer is being made, which ends that.
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST)
            .max_buf_size(BUFFER)
            .max_headers(HEADERS)
            .serve_connection(TokioIo::new(Patient::new(stream, ANSWER)), service);
        let mut connection = pin!(connection);
        // How it ended is the client's business.
        tokio::select! {
            _ = &mut connection => return,
            () = sleep(AGE) => connection.as_mut().graceful_shutdown(),
        }
        let _ = timeout(LAST, connection).await;
    }
}

/// Says that there is no room, as far as that can be said without waiting.
fn refuse(stream: TcpStream) {
    let Ok(mut stream) = stream.into_std() else {
        return;
    };
    // Were the request left unread, the kernel would answer with a reset in place of our words.
    let _ = stream.read(&mut [0; 4096]);
    let _ = stream.write(FULL);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_has_the_length_that_it_says() {
        let text = std::str::from_utf8(FULL).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        assert!(
            head.contains(&format!("content-length: {}\r\n", body.len())),
            "{text}"
        );
    }
}
